"""What visitors see of a redeployment: .venv/bin/python -m bench.hosts

hosts/www is deployed to a stock server in a local VM, used, changed and deployed again, as
tests/test_story.py does it. In seconds: how long a visitor had no page, and the downtime by SSH.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from tests.test_story import redeployed_www

if __name__ == "__main__":
    with TemporaryDirectory() as name, redeployed_www(Path(name)) as www:
        down = www.story.reports[1]["downtime_s"]
        print(f"www: {www.visitor.outage:.0f} s without a page, downtime {down:.0f} s")
