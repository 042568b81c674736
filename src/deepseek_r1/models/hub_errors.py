"""What can go wrong with the hub, in clear words: never its own text, an address or anything that may hold a token."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_r1.core.errors import CapacityError, ConfigError, DeepSeekError, ModelNotFoundError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

AGAIN = "run the same command again: it fetches only what is missing"


@contextmanager
def hub_errors(repo: str, revision: str, cache: Path) -> Iterator[None]:
    """Turn what `huggingface_hub` and its HTTP client raise into errors that say how to mend it.

    Raises `ModelNotFoundError` for whatever the hub doesn't have, give or answer, `CapacityError` for a disk that is
    full, `ConfigError` for an address or a token that can't be one. The library's own log is kept quiet meanwhile.
    """
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import logging as hub_log

    level = hub_log.get_verbosity()
    hub_log.set_verbosity(logging.ERROR)
    try:
        token = get_token() or ""
        if not (token.isascii() and token.isprintable()):
            raise ConfigError("the hub's token holds characters that no token has", remedy="set HF_TOKEN again")
        yield
    except OfflineModeIsEnabled:
        raise ModelNotFoundError(
            f"{repo} can't be fetched: HF_HUB_OFFLINE forbids the network", remedy="unset HF_HUB_OFFLINE"
        ) from None
    except HfHubHTTPError as error:
        message, remedy = _refusal(error, repo, revision)
        raise ModelNotFoundError(message, remedy=remedy) from None
    except InvalidURL:
        raise ConfigError("HF_ENDPOINT is no address", remedy="unset it, or write https://name") from None
    except (HTTPError, OSError) as error:
        raise _trouble(error, repo, cache) from None
    finally:
        hub_log.set_verbosity(level)


def no_space(needed: str, cache: Path) -> CapacityError:
    """The error for a disk that is too small for what is `needed`."""
    return CapacityError(
        f"not enough disk space in {cache}: {needed}",
        remedy="free space there, or set HF_HUB_CACHE to a folder on a larger disk",
    )


def _refusal(error: HfHubHTTPError, repo: str, revision: str) -> tuple[str, str]:
    """What an HTTP error of the hub means, and what to do."""
    from huggingface_hub import errors

    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated: its owner asks for consent first", "give it on the hub's page, then set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no {repo}, or it is private ({status})", "check the name; for a private one set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}", "give --revision a branch, a tag or a commit of it"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{repo} lists a file that the hub doesn't have", AGAIN
    if status == 401:
        return f"{repo}: the hub asks for a token, or doesn't take yours (401)", "set HF_TOKEN to a valid one"
    if status == 403:
        return f"{repo}: the hub forbids it (403)", "set HF_TOKEN to a token that may read this repository"
    if status == 429:
        return f"{repo}: the hub was asked too often (429)", "wait some minutes; HF_TOKEN raises the limit"
    if status >= 500:
        return f"{repo}: the hub is in trouble ({status})", f"later {AGAIN}"
    return f"{repo}: the hub answered {status}", "check the name, and HF_ENDPOINT if it is set"


def _trouble(error: Exception, repo: str, cache: Path) -> DeepSeekError:
    """What a broken connection, or the disk, means."""
    from httpx2 import ConnectError, HTTPError

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return no_space(f"{repo} is fetched in part", cache)
    if isinstance(error, OSError) and error.filename:
        return DeepSeekError(f"{error.filename}: {error.strerror}", remedy="HF_HUB_CACHE names another folder")
    # Other errors may quote what was sent, and with it the token.
    reason = str(error) if isinstance(error, ConnectError) else type(error).__name__
    what = "can't be reached" if isinstance(error, HTTPError) else "sent something else than it promised"
    return ModelNotFoundError(
        f"{repo}: the hub {what}: {reason}", remedy=f"check the network, and HF_ENDPOINT if it is set; then {AGAIN}"
    )
