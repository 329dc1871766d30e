"""Files of mirrors: http, https, file."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any
from urllib.request import Request, urlopen


@contextmanager
def opened(url: str, *, timeout: float, method: str = "GET") -> Iterator[Any]:
    """The answer to a request for URL. TIMEOUT: seconds without a byte.

    Raises OSError, and ValueError for what is no URL or no HTTP.
    """
    request = Request(url, method=method)  # noqa: S310 (what the user configured)
    try:
        with urlopen(request, timeout=timeout) as answer:  # noqa: S310
            yield answer
    except HTTPException as error:
        raise ValueError(f"{url}: {error!r}") from None
