"""What clients see of a redeployment: .venv/bin/python -m bench.hosts

hosts/www and hosts/mx are deployed to a stock server in a local VM, used, changed and deployed
again, as tests/whole/test_story.py does it. A line for each, in seconds: how long a visitor had
no page, how long the unluckiest mail waited, and the downtime by SSH.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from tests.whole.test_story import redeployed_mx, redeployed_www

if __name__ == "__main__":
    with TemporaryDirectory() as name, redeployed_www(Path(name)) as www:
        down = www.story.reports[1]["downtime_s"]
        print(f"www: {www.visitor.outage:.0f} s without a page, downtime {down:.0f} s", flush=True)
    with TemporaryDirectory() as name, redeployed_mx(Path(name)) as mx:
        down = mx.story.reports[1]["downtime_s"]
        page, mail = mx.visitor.outage, max(mx.sender.delays)
        print(f"mx: {page:.0f} s without a page, mail {mail:.0f} s, downtime {down:.0f} s")
