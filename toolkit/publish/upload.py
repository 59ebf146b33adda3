"""The upload: to a hub, by the hub's own client; private unless said otherwise."""

from __future__ import annotations

from pathlib import Path

from toolkit.errors import PublishError


def upload_bundle(folder: Path, repository: str, *, public: bool = False) -> str:
    """Create the repository where needed and upload the folder in one commit.

    Credentials come from the hub client's own places (`hf auth login`, HF_TOKEN); HF_ENDPOINT names
    another hub.

    Returns:
        Address of the commit.

    Raises:
        PublishError: the hub refuses or cannot be reached; nothing half-uploaded becomes visible.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Merged model with its report"
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise PublishError(
            f"{repository}: the upload failed ({first}). Log in with `hf auth login`, check the "
            "name and the connection, and run again; what is there is not sent twice."
        ) from error
    return str(done.commit_url)
