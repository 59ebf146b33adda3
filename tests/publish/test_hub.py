"""Uploads to a hub that speaks the real protocol: whole or invisible, whatever breaks."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard, snapshot_download

from tests.helpers.hub_server import TOKEN, Fault, Hub
from toolkit.errors import PublishError
from toolkit.publish.bundle import SUMS, write_sums
from toolkit.publish.hub import HubTarget, check_credentials, upload_bundle

REPO = "org/tiny"
CARD = "---\nlicense: mit\n---\n# tiny\n"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text("{}")
    for number in range(2):
        (folder / f"model-{number}.safetensors").write_bytes(bytes([number]) * 300_000)
    write_sums(folder)
    return folder


def upload(folder: Path, **options: object) -> tuple[str, list[float]]:
    """The address, and how long was waited between tries."""
    waits: list[float] = []
    return upload_bundle(folder, HubTarget(REPO, **options), wait=waits.append), waits  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def published(hub: Hub, revision: str = "main") -> dict[str, bytes]:
    return {n: d for n, d in hub.files(REPO, revision).items() if n != ".gitattributes"}


def is_untouched(hub: Hub) -> bool:
    """Nothing but what every new repository has."""
    return list(hub.files(REPO)) == [".gitattributes"]


def test_private_in_one_commit_and_downloaded_whole(hub: Hub, bundle: Path, tmp_path: Path):
    address, waits = upload(bundle)
    assert waits == []
    repo = hub.repositories[REPO]
    assert repo.private
    assert len(repo.log) == 2  # the hub's own first, and ours
    assert address == f"{hub.address}/{REPO}/commit/{repo.log[-1]}"
    assert published(hub) == contents(bundle)
    found = Path(snapshot_download(REPO, local_dir=tmp_path / "down"))
    assert {n: (found / n).read_bytes() for n in contents(bundle)} == contents(bundle)
    assert ModelCard.load(found / "README.md").data.license == "mit"


def test_public_when_asked(hub: Hub, bundle: Path):
    upload(bundle, public=True)
    assert not hub.repositories[REPO].private


def test_a_second_call_sends_nothing(hub: Hub, bundle: Path, capsys: pytest.CaptureFixture[str]):
    upload(bundle)
    before = (hub.sent("PUT"), hub.sent("/commit/"), len(hub.repositories[REPO].log))
    address, _ = upload(bundle)
    assert (hub.sent("PUT"), hub.sent("/commit/"), len(hub.repositories[REPO].log)) == before
    assert address == f"{hub.address}/{REPO}"
    assert "holds exactly this already; nothing was sent" in capsys.readouterr().out


def test_only_what_changed_is_sent_and_what_is_gone_goes(hub: Hub, bundle: Path):
    (bundle / "old.json").write_text("{}")
    write_sums(bundle)
    upload(bundle)
    hub.repositories[REPO].trees[hub.repositories[REPO].refs["main"]]["image.png"] = (
        hub.repositories[REPO].trees[hub.repositories[REPO].refs["main"]]["config.json"]
    )
    (bundle / "old.json").unlink()
    (bundle / "model-1.safetensors").write_bytes(b"new" * 1000)
    write_sums(bundle)
    sent = hub.sent("PUT")
    upload(bundle)
    assert hub.sent("PUT") == sent + 1
    files = published(hub)
    assert files.pop("image.png") == b"{}"  # others' files stay
    assert files == contents(bundle)


def test_a_tag(hub: Hub, bundle: Path):
    upload(bundle, tag="v1")
    assert published(hub, "refs/tags/v1") == contents(bundle)
    upload(bundle, tag="v1")
    (bundle / "config.json").write_text('{"a": 1}')
    write_sums(bundle)
    with pytest.raises(PublishError, match="the tag v1 stands for"):
        upload(bundle, tag="v1")


def test_a_pull_request(hub: Hub, bundle: Path, capsys: pytest.CaptureFixture[str]):
    address, _ = upload(bundle, pull_request=True)
    assert address == f"{hub.address}/{REPO}/discussions/1"
    assert is_untouched(hub)
    assert published(hub, "refs/pr/1") == contents(bundle)
    again, _ = upload(bundle, pull_request=True)
    assert again == address
    assert len(hub.repositories[REPO].pulls) == 1
    assert "proposes exactly this already" in capsys.readouterr().out


def test_large_files_in_parts(hub: Hub, bundle: Path):
    hub.part_bytes = 100_000
    upload(bundle)
    assert hub.sent(r"PUT /store/\w+/\d") == 6
    assert published(hub) == contents(bundle)


@pytest.mark.parametrize(
    ("request_", "late"),
    [
        ("POST /api/repos/create", False),
        ("/tree/", False),
        ("/preupload/", False),
        ("objects/batch", False),
        ("PUT /store", False),
        ("POST /verify", False),
        ("/commit/", False),
        ("/commit/", True),
    ],
)
@pytest.mark.parametrize("status", [None, 429, 500])
def test_what_breaks_once_is_survived(
    hub: Hub, bundle: Path, request_: str, status: int | None, late: bool
):
    # Retry-After keeps the client's own pauses short; the tool's are recorded, not slept.
    headers = {"Retry-After": "0"} if status else {}
    hub.faults.append(Fault(request_, status, headers=headers, late=late))
    upload(bundle)
    assert hub.faults[0].times == 0
    assert published(hub) == contents(bundle)
    # A commit whose answer was lost is seen, and not made twice.
    assert len(hub.repositories[REPO].log) == 2


@pytest.mark.parametrize("status", [None, 503])
def test_what_goes_on_breaking_is_reported_and_nothing_shows(
    hub: Hub, bundle: Path, status: int | None
):
    hub.faults.append(Fault("/commit/", status, times=100))
    waits: list[float] = []
    with pytest.raises(PublishError) as caught:
        upload_bundle(bundle, HubTarget(REPO), wait=waits.append)
    assert waits == [0.5, 1.0, 2.0, 4.0]
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert ("the connection broke" if status is None else "answered 503") in text
    assert "run the same command again" in text
    assert is_untouched(hub)
    # The large files are stored: the next call sends none of them.
    hub.faults.clear()
    sent = hub.sent("PUT")
    upload(bundle)
    assert hub.sent("PUT") == sent
    assert published(hub) == contents(bundle)


def test_a_token_that_expires_in_between(hub: Hub, bundle: Path):
    hub.faults.append(Fault("/commit/", 401, times=100))
    with pytest.raises(PublishError) as caught:
        upload(bundle)
    assert "does not accept the credentials (401)" in str(caught.value)
    assert "hf auth login" in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert is_untouched(hub)


def test_credentials_are_checked_first(hub: Hub, monkeypatch: pytest.MonkeyPatch, bundle: Path):
    assert check_credentials() == hub.address
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    with pytest.raises(PublishError, match="does not accept the credentials") as caught:
        check_credentials()
    assert "xxxx" not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PublishError, match="there are no credentials for http://127"):
        check_credentials()


def test_no_right_to_write_there(hub: Hub, bundle: Path):
    with pytest.raises(PublishError, match=r"may not write there \(403\)"):
        upload_bundle(bundle, HubTarget("others/tiny"))


def test_a_damaged_upload_is_refused_by_the_hub(hub: Hub, bundle: Path):
    """The bundle changed after its checksums were written: its hash is not what was promised."""
    (bundle / "model-0.safetensors").write_bytes(b"y" * 300_000)
    with pytest.raises(PublishError, match="422"):
        upload(bundle)
    assert is_untouched(hub)


def test_a_folder_without_checksums_is_no_bundle(hub: Hub, bundle: Path):
    (bundle / SUMS).unlink()
    with pytest.raises(PublishError, match="no whole bundle"):
        upload(bundle)
    assert not hub.repositories


def test_ranges(hub: Hub, bundle: Path):
    """Downloads that broke off continue in the middle of a file."""
    import httpx2

    upload(bundle, public=True)
    answer = httpx2.get(
        f"{hub.address}/{REPO}/resolve/main/model-1.safetensors",
        headers={"Range": "bytes=299990-"},
        follow_redirects=True,
    )
    assert answer.status_code == 206
    assert answer.content == b"\x01" * 10
