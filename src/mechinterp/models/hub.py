"""The one way from the Hugging Face hub to a folder of a model's files: the local cache first, then the network."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path


def download(
    repo: str,
    wanted: Sequence[str],
    *,
    revision: str | None = None,
    enough: Callable[[Path], bool],
    instead: str = "use 'lab', the model inside this package",
) -> Path:
    """The folder with the wanted files of a repository; files that are cached are not asked for again.

    Args:
        repo: `gpt2` or `owner/name`. wanted: patterns of the files; those in subfolders only if a pattern has a `/`.
        enough: whether a cached folder will do, else the network is asked.
        instead: what to do without the network, for the message.

    Errors: `ValueError` for a repository or revision that the hub does not have or that is gated;
        `ConnectionError` if it is neither cached nor reachable, naming the ways out.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    ignored = None if any("/" in pattern for pattern in wanted) else ["*/*"]

    def snapshot(local: bool) -> Path:
        return Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=list(wanted), ignore_patterns=ignored, local_files_only=local
            )
        )

    with contextlib.suppress(LocalEntryNotFoundError):
        folder = snapshot(local=True)
        if enough(folder):
            return folder
    try:
        return snapshot(local=False)
    except GatedRepoError as error:
        raise ValueError(
            f"{repo} is a gated repository: accept its licence on the hub and log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(
            f"{repo} has no revision {revision!r}; see the list of branches and tags on the hub"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"unknown repository {repo!r}: no model of this package has that name, there is no such folder, and the "
            "hub has no public repository of this name (a private one needs `hf auth login`)"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, ConnectionError, TimeoutError) as error:
        raise ConnectionError(unreachable(repo, instead)) from error


def unreachable(repo: str, instead: str = "use 'lab', the model inside this package") -> str:
    """What to say when the hub does not answer."""
    return (
        f"{repo!r} is not in the local cache and the Hugging Face hub cannot be reached. Three ways out: connect "
        f"once so that the model is downloaded and cached; pass the path of a local folder that holds it; or {instead}"
    )


def names(repo: str, *, revision: str | None = None) -> list[str]:
    """The names of all files of a repository; `ConnectionError` if the hub cannot be reached."""
    import httpx
    from huggingface_hub import list_repo_files
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return list_repo_files(repo, revision=revision)
    except (HfHubHTTPError, httpx.HTTPError, ConnectionError, TimeoutError) as error:
        raise ConnectionError(unreachable(repo)) from error
