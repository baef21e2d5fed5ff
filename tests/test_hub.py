"""Loading from and pushing to the Hub, as users do it, against a stand-in on localhost.

huggingface_hub reads its settings when it is imported. So the steps below (`@step`) run in fresh processes, several in
one because the imports take seconds: this file is its own script. A test looks up how its step ended.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from hub_standin import HubStandIn

TOKEN = "hf_x"
REPO = "org/cfld-tiny"
COMPONENTS = ("appearance_encoder", "pose_adapter", "prompt_decoder", "source_encoder", "unet", "vae")
WEIGHTS = "diffusion_pytorch_model"
NEEDED = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{name}/config.json" for name in COMPONENTS),
    *(f"{name}/{WEIGHTS}.safetensors" for name in COMPONENTS),
}
NEEDED_FP16 = {name.replace(f"{WEIGHTS}.safetensors", f"{WEIGHTS}.fp16.safetensors") for name in NEEDED}
OTHER_FILES = ("README.md", "teaser.png", "optimizer.bin", "checkpoints/pytorch_model.pth", "unet/training_log.txt")

STEPS: dict[str, dict[str, Callable[[Scenario], None]]] = {}


def step(process: str) -> Callable[[Callable[[Scenario], None]], Callable[[Scenario], None]]:
    """Run the function in that process, after those above it."""

    def register(function: Callable[[Scenario], None]) -> Callable[[Scenario], None]:
        STEPS.setdefault(process, {})[function.__name__] = function
        return function

    return register


@dataclass
class Scenario:
    """What a step works with."""

    hub: HubStandIn
    folder: Path
    """The saved pipeline, with the variant fp16 and files that nobody needs."""
    folder_v2: Path
    """One with other weights."""
    work: Path
    """For files of the step."""

    def new_folder(self) -> Path:
        """An empty folder, e.g. for a cache of its own."""
        return Path(tempfile.mkdtemp(dir=self.work))


# In the fresh processes ------------------------------------------------------------------------------------------


def pixels(pipe: Any) -> np.ndarray:
    """A small image, always with the same inputs."""
    import torch

    pipe.set_progress_bar_config(disable=True)
    image = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    pose = torch.linspace(0, 1, 21 * 128 * 128).reshape(1, 21, 128, 128)
    generator = torch.Generator().manual_seed(0)
    return pipe(
        image=image, pose=pose, num_inference_steps=1, guidance_scale=1.0, generator=generator, output_type="np"
    ).images


@lru_cache
def local_pipeline(folder: Path, **kwargs: Any) -> Any:
    """A pipeline from a folder, without the Hub; not to be changed."""
    from diffusers_cfld import CFLDPipeline

    return CFLDPipeline.from_pretrained(folder, **kwargs)


@lru_cache
def local_pixels(folder: Path, **kwargs: Any) -> np.ndarray:
    """Its image."""
    return pixels(local_pipeline(folder, **kwargs))


def state(model: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def assert_same_state(model: Any, expected: Any) -> None:
    assert type(model) is type(expected)
    actual, wanted = state(model), state(expected)
    assert actual.keys() == wanted.keys()
    for name, value in actual.items():
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)


@step("online")
def generic_loading_needs_the_import(s: Scenario) -> None:
    """`DiffusionPipeline` cannot know the package; it does not import what a repository names. The first step."""
    from diffusers import DiffusionPipeline

    assert "diffusers_cfld" not in sys.modules
    with pytest.raises(ValueError, match=r"diffusers_cfld.py as defined in `model_index.json` does not exist"):
        DiffusionPipeline.from_pretrained(REPO, cache_dir=s.new_folder())
    assert "diffusers_cfld" not in sys.modules


@step("online")
def loads_generically_after_the_import(s: Scenario) -> None:
    from diffusers import DiffusionPipeline

    from diffusers_cfld import CFLDPipeline

    pipe = DiffusionPipeline.from_pretrained(REPO, cache_dir=s.new_folder())

    assert type(pipe) is CFLDPipeline
    assert sorted(s.hub.downloads) == sorted(NEEDED), s.hub.downloads
    np.testing.assert_array_equal(pixels(pipe), local_pixels(s.folder))


@step("online")
def loads_in_one_line(s: Scenario) -> None:
    from diffusers_cfld import CFLDPipeline

    pipe = CFLDPipeline.from_pretrained(REPO)

    assert sorted(s.hub.downloads) == sorted(NEEDED), s.hub.downloads
    assert all(request.token is None for request in s.hub.requests)
    np.testing.assert_array_equal(pixels(pipe), local_pixels(s.folder))


@step("online")
def loads_a_revision(s: Scenario) -> None:
    from diffusers_cfld import CFLDPipeline

    v2 = pixels(CFLDPipeline.from_pretrained(REPO, revision="v2"))

    np.testing.assert_array_equal(v2, local_pixels(s.folder_v2))
    assert np.abs(v2 - local_pixels(s.folder)).max() > 0.01

    commit = s.hub.repos[REPO].refs["main"]
    assert Path(CFLDPipeline.download(REPO, revision=commit)).name == commit
    with pytest.raises(OSError, match=REPO) as raised:
        CFLDPipeline.from_pretrained(REPO, revision="v3")
    assert "v3" in str(raised.value.__cause__)


@step("online")
def loads_a_variant(s: Scenario) -> None:
    import torch

    from diffusers_cfld import CFLDPipeline

    pipe = CFLDPipeline.from_pretrained(REPO, variant="fp16", dtype=torch.float16, cache_dir=s.new_folder())

    assert sorted(s.hub.downloads) == sorted(NEEDED_FP16), s.hub.downloads
    assert {getattr(pipe, name).dtype for name in COMPONENTS} == {torch.float16}
    np.testing.assert_array_equal(pixels(pipe), local_pixels(s.folder, variant="fp16", dtype=torch.float16))
    with pytest.raises(ValueError, match="bf16"):
        CFLDPipeline.from_pretrained(REPO, variant="bf16", cache_dir=s.new_folder())


@step("online")
def caches_in_cache_dir(s: Scenario) -> None:
    from diffusers_cfld import CFLDPipeline

    cache = s.new_folder()
    first = pixels(CFLDPipeline.from_pretrained(REPO, cache_dir=cache))
    assert {path.name for path in cache.glob("models--*")} == {"models--org--cfld-tiny"}
    assert len(s.hub.downloads) == len(NEEDED)

    s.hub.requests.clear()
    second = pixels(CFLDPipeline.from_pretrained(REPO, cache_dir=cache))
    assert s.hub.requests  # asked for the newest commit
    assert not s.hub.downloads
    np.testing.assert_array_equal(second, first)


@step("online")
def loads_local_files_only(s: Scenario) -> None:
    from diffusers_cfld import CFLDPipeline, PoseAdapter

    cache = s.new_folder()
    CFLDPipeline.download(REPO, cache_dir=cache)

    s.hub.requests.clear()
    pipe = CFLDPipeline.from_pretrained(REPO, cache_dir=cache, local_files_only=True)
    PoseAdapter.from_pretrained(REPO, subfolder="pose_adapter", cache_dir=cache, local_files_only=True)
    np.testing.assert_array_equal(pixels(pipe), local_pixels(s.folder))
    with pytest.raises(OSError, match=r"(?i)cache|disk"):
        CFLDPipeline.from_pretrained(REPO, cache_dir=s.new_folder(), local_files_only=True)
    assert not s.hub.requests


@step("online")
def loads_a_private_repo_with_a_token(s: Scenario) -> None:
    from diffusers_cfld import CFLDPipeline, PoseAdapter

    s.hub.add_repo("org/private", s.folder, private=True)
    pipe = CFLDPipeline.from_pretrained("org/private", token=TOKEN, cache_dir=s.new_folder())
    assert {request.token for request in s.hub.requests} == {TOKEN}
    np.testing.assert_array_equal(pixels(pipe), local_pixels(s.folder))

    for token in (None, "hf_wrong"):
        with pytest.raises(OSError, match=r"org/private"):
            CFLDPipeline.from_pretrained("org/private", token=token, cache_dir=s.new_folder())
        with pytest.raises(OSError, match=r"org/private"):
            PoseAdapter.from_pretrained("org/private", subfolder="pose_adapter", token=token, cache_dir=s.new_folder())


@step("online")
def explains_a_gated_repo(s: Scenario) -> None:
    from diffusers_cfld import CFLDPipeline

    s.hub.add_repo("org/gated", s.folder, gated=True)
    with pytest.raises(OSError, match=r"(?i)gated"):
        CFLDPipeline.from_pretrained("org/gated", cache_dir=s.new_folder())
    assert not s.hub.downloads
    CFLDPipeline.download("org/gated", token=TOKEN, cache_dir=s.new_folder())
    assert sorted(s.hub.downloads) == sorted(NEEDED)


@step("online")
def explains_a_repo_that_does_not_exist(s: Scenario) -> None:
    from diffusers_cfld import CFLDPipeline, PoseAdapter

    for token in (None, TOKEN):
        with pytest.raises(OSError, match=r"org/nothing"):
            CFLDPipeline.from_pretrained("org/nothing", token=token)
        with pytest.raises(OSError, match=r"org/nothing"):
            PoseAdapter.from_pretrained("org/nothing", subfolder="pose_adapter", token=token)


@step("online")
def loads_each_model_alone(s: Scenario) -> None:
    from diffusers import AutoModel

    import diffusers_cfld

    cache = s.new_folder()
    classes = {
        "appearance_encoder": diffusers_cfld.AppearanceEncoder,
        "pose_adapter": diffusers_cfld.PoseAdapter,
        "prompt_decoder": diffusers_cfld.PerceptionRefinedDecoder,
        "source_encoder": diffusers_cfld.SwinImageEncoder,
    }
    for name, cls in classes.items():
        s.hub.requests.clear()
        model = cls.from_pretrained(REPO, subfolder=name, cache_dir=cache)
        assert set(s.hub.downloads) == {f"{name}/config.json", f"{name}/{WEIGHTS}.safetensors"}
        assert_same_state(model, cls.from_pretrained(s.folder, subfolder=name))
    # diffusers' own entry point for a model whose class the repository names
    assert type(AutoModel.from_pretrained(REPO, subfolder="pose_adapter", cache_dir=cache)) is classes["pose_adapter"]


@step("online")
def pushes_a_pipeline(s: Scenario) -> None:
    from diffusers_cfld import CFLDPipeline

    pipe = local_pipeline(s.folder)
    pipe.push_to_hub("org/new", token=TOKEN)

    assert {r.token for r in s.hub.requests if not r.path.startswith("/lfs/")} == {TOKEN}
    assert set(s.hub.files("org/new")) == {".gitattributes", "README.md", *NEEDED}
    loaded = CFLDPipeline.from_pretrained("org/new", cache_dir=s.new_folder())
    np.testing.assert_array_equal(pixels(loaded), pixels(pipe))

    with pytest.raises(OSError, match="401"):
        pipe.push_to_hub("org/forbidden", token="hf_wrong")
    assert "org/forbidden" not in s.hub.repos


@step("online")
def pushes_a_pipeline_while_saving(s: Scenario) -> None:
    from diffusers_cfld import CFLDPipeline

    pipe = local_pipeline(s.folder)
    folder = s.new_folder()
    pipe.save_pretrained(str(folder), push_to_hub=True, repo_id="org/saved", variant="fp16", private=True, token=TOKEN)

    saved = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert saved == {"README.md", *NEEDED_FP16}
    files = s.hub.files("org/saved")
    assert set(files) == {".gitattributes", *saved}
    assert all(files[name] == (folder / name).read_bytes() for name in saved)
    assert s.hub.repos["org/saved"].private
    loaded = CFLDPipeline.from_pretrained("org/saved", variant="fp16", token=TOKEN, cache_dir=s.new_folder())
    np.testing.assert_array_equal(pixels(loaded), pixels(pipe))


@step("online")
def pushes_the_card_of_a_pipeline(s: Scenario) -> None:
    """The card of both ways of pushing; the auto-generated one of diffusers names neither package nor class."""
    pipe = local_pipeline(s.folder)
    pipe.push_to_hub("org/card-1", token=TOKEN)
    pipe.save_pretrained(str(s.new_folder()), push_to_hub=True, repo_id="org/card-2", token=TOKEN)
    for repo_id in ("org/card-1", "org/card-2"):
        card = s.hub.files(repo_id)["README.md"].decode()
        front_matter = card.split("---\n")[1].splitlines()
        assert "library_name: diffusers" in front_matter, card
        assert "- diffusers-cfld" in front_matter, card
        assert "from diffusers_cfld import CFLDPipeline" in card, card
        assert "DeepFashion" not in card, card
        assert f"The scheduler is `{type(pipe.scheduler).__name__}`" in card, card
        assert f'CFLDPipeline.from_pretrained("{repo_id}"' in card, card


@step("online")
def pushes_the_card_of_a_variant(s: Scenario) -> None:
    """A repository with nothing but a variant does not load without its name."""
    from diffusers_cfld import CFLDPipeline

    local_pipeline(s.folder).push_to_hub("org/card-fp16", variant="fp16", token=TOKEN)
    with pytest.raises(OSError, match="no file named"):
        CFLDPipeline.from_pretrained("org/card-fp16", cache_dir=s.new_folder())
    card = s.hub.files("org/card-fp16")["README.md"].decode()
    assert 'CFLDPipeline.from_pretrained("org/card-fp16", variant="fp16"' in card, card


@step("online")
def pushes_a_pipeline_without_a_component(s: Scenario) -> None:
    from diffusers_cfld import CFLDPipeline

    for name in ("source_encoder", "unet", "prompt_decoder"):
        parts = local_pipeline(s.folder).components
        parts[name] = None
        repo_id = f"org/without-{name}"
        CFLDPipeline(**parts).push_to_hub(repo_id, token=TOKEN)
        assert f"{name}/config.json" not in s.hub.files(repo_id)
        assert "README.md" in s.hub.files(repo_id)


@step("online")
def pushes_the_card_that_the_folder_has(s: Scenario) -> None:
    folder = s.new_folder()
    card = "---\nlicense: mit\n---\n\nWritten by hand.\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    local_pipeline(s.folder).save_pretrained(folder, push_to_hub=True, repo_id="org/own-card", token=TOKEN)
    assert s.hub.files("org/own-card")["README.md"].decode() == card
    assert (folder / "README.md").read_text(encoding="utf-8") == card


@step("online")
def keeps_a_card_that_is_on_the_hub(s: Scenario) -> None:
    """A second push does not replace what the owner wrote."""
    folder = s.new_folder()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\nWritten by hand.\n", encoding="utf-8")
    s.hub.add_repo("org/with-card", folder)
    local_pipeline(s.folder).push_to_hub("org/with-card", token=TOKEN)
    card = s.hub.files("org/with-card")["README.md"].decode()
    assert "Written by hand." in card
    assert "license: mit" in card


@step("online")
def pushes_a_model_alone(s: Scenario) -> None:
    from diffusers_cfld import PoseAdapter

    model = PoseAdapter.from_pretrained(s.folder, subfolder="pose_adapter")
    model.push_to_hub("org/pose-adapter", token=TOKEN)
    assert set(s.hub.files("org/pose-adapter")) == {
        ".gitattributes",
        "README.md",
        "config.json",
        f"{WEIGHTS}.safetensors",
    }
    assert_same_state(PoseAdapter.from_pretrained("org/pose-adapter"), model)


class _Evil:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (open, (str(self.mark), "w"))


def make_evil(s: Scenario, *names: str) -> tuple[str, Path]:
    """A repository with these files added, and the file that exists once one of them has been executed."""
    folder = s.new_folder() / "repo"
    mark = folder.parent / "executed"
    shutil.copytree(s.folder, folder, ignore=shutil.ignore_patterns("*.fp16.safetensors"))
    for name in names:
        if name.endswith(".py"):
            code = f"open({str(mark)!r}, 'w').close()\nclass CFLDPipeline: pass\nclass PoseAdapter: pass\n"
            (folder / name).write_text(code)
        else:
            (folder / name).write_bytes(pickle.dumps(_Evil(mark)))
    # A name of the Hub may not end with a dash or have two in a row, which a temporary folder's underscores may.
    repo_id = f"org/{folder.parent.name}".replace("_", "x")
    s.hub.add_repo(repo_id, folder)
    return repo_id, mark


@step("online")
def executes_no_python_file_of_a_repo(s: Scenario) -> None:
    from diffusers import DiffusionPipeline

    from diffusers_cfld import CFLDPipeline

    repo_id, mark = make_evil(s, "pipeline.py", "pose_adapter/pose_adapter.py", "pose_adapter/__init__.py")
    cache = s.new_folder()
    for cls in (CFLDPipeline, DiffusionPipeline):
        pipe = cls.from_pretrained(repo_id, cache_dir=cache)
        assert type(pipe) is CFLDPipeline
        assert pipe.pose_adapter.__class__.__module__ == "diffusers_cfld.models.pose_adapter"
        assert not mark.exists()
    np.testing.assert_array_equal(pixels(pipe), local_pixels(s.folder))

    # The name that diffusers would take for a component's own code: it has to ask for `trust_remote_code`.
    repo_id, mark = make_evil(s, "pose_adapter/diffusers_cfld.py")
    with pytest.raises(ValueError, match="trust_remote_code"):
        CFLDPipeline.from_pretrained(repo_id, cache_dir=cache)
    assert not mark.exists()


@step("online")
def executes_no_pickle_of_a_repo(s: Scenario) -> None:
    from diffusers_cfld import CFLDPipeline, PoseAdapter

    # Beside safetensors, pickles are not even fetched.
    repo_id, mark = make_evil(s, f"pose_adapter/{WEIGHTS}.bin", "unet/pytorch_model.bin", "pytorch_model.bin")
    CFLDPipeline.from_pretrained(repo_id, cache_dir=s.new_folder())
    assert not [name for name in s.hub.downloads if name.endswith(".bin")]
    assert not mark.exists()

    repo_id, mark = make_evil(s, f"pose_adapter/{WEIGHTS}.bin")
    del s.hub.repos[repo_id].commits[s.hub.repos[repo_id].refs["main"]][f"pose_adapter/{WEIGHTS}.safetensors"]
    for use_safetensors in (None, True):
        kwargs = {"use_safetensors": use_safetensors, "cache_dir": s.new_folder()}
        with pytest.raises((OSError, pickle.UnpicklingError)):
            PoseAdapter.from_pretrained(repo_id, subfolder="pose_adapter", **kwargs)
        with pytest.raises((OSError, pickle.UnpicklingError)):
            CFLDPipeline.from_pretrained(repo_id, **kwargs)
    assert not mark.exists()


@step("offline")
def loads_offline_from_the_cache(s: Scenario) -> None:
    from diffusers_cfld import CFLDPipeline, PoseAdapter

    assert os.environ["HF_HUB_OFFLINE"] == "1"
    pipe = CFLDPipeline.from_pretrained(REPO)
    v2 = CFLDPipeline.from_pretrained(REPO, revision="v2")
    PoseAdapter.from_pretrained(REPO, subfolder="pose_adapter")

    np.testing.assert_array_equal(pixels(pipe), local_pixels(s.folder))
    np.testing.assert_array_equal(pixels(v2), local_pixels(s.folder_v2))
    assert not s.hub.requests


@step("offline")
def explains_an_empty_cache_offline(s: Scenario) -> None:
    from diffusers_cfld import CFLDPipeline, PoseAdapter

    with pytest.raises(OSError, match=r"(?i)offline|outgoing traffic has been disabled"):
        CFLDPipeline.from_pretrained(REPO, cache_dir=s.new_folder())
    with pytest.raises(OSError, match=r"org/cfld-tiny"):
        PoseAdapter.from_pretrained(REPO, subfolder="pose_adapter", cache_dir=s.new_folder())
    assert not s.hub.requests


def run_steps(process: str, work: Path) -> dict[str, str | None]:
    """Run a process's steps; the traceback of each that failed."""
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: Any) -> None:
        assert address[0] == "127.0.0.1", f"Tried to reach {address}."
        connect(self, address)

    socket.socket.connect = connect_locally  # type: ignore[method-assign]
    errors: dict[str, str | None] = {}
    with HubStandIn(work / "hub", tokens={TOKEN: "org"}) as hub:
        os.environ["HF_ENDPOINT"] = hub.endpoint
        hub.add_repo(REPO, work / "pipeline")
        hub.add_repo(REPO, work / "pipeline-v2", revision="v2")
        for name, function in STEPS[process].items():
            files = work / process / name
            files.mkdir(parents=True)
            hub.requests.clear()
            try:
                function(Scenario(hub, work / "pipeline", work / "pipeline-v2", files))
                unknown = [request for request in hub.requests if request.status == 501]
                assert not unknown, f"The stand-in lacks {unknown}."
            except BaseException:
                answers = "\n".join(str(request) for request in hub.requests if request.status >= 400)
                errors[name] = f"{traceback.format_exc()}\n{answers}"
            else:
                errors[name] = None
            shutil.rmtree(files)
    return errors


# In pytest's process ---------------------------------------------------------------------------------------------


def save_pipelines(work: Path) -> None:
    """Save what the steps load."""
    import torch
    from testing_utils import tiny_pipeline

    folder = work / "pipeline"
    pipe = tiny_pipeline()
    pipe.save_pretrained(folder)
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias += 0.5
    pipe.save_pretrained(work / "pipeline-v2")
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias -= 0.5
    pipe.to(torch.float16).save_pretrained(folder, variant="fp16")

    for name in OTHER_FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"---\nlicense: other\n---\n" if name == "README.md" else b"0")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], dict[str, str | None]]]:
    """How the steps of a process ended; runs it when it is first asked for."""
    work = tmp_path_factory.mktemp("hub")
    done: dict[str, dict[str, str | None]] = {}

    def run(process: str) -> dict[str, str | None]:
        if process == "offline":
            run("online")  # fills the cache
        if process not in done:
            environment = {
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) and not name.lower().endswith("_proxy")
            }
            environment |= {
                "HF_HOME": str(work / "home"),
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "HF_HUB_DISABLE_XET": "1",
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            }
            if process == "offline":
                environment["HF_HUB_OFFLINE"] = "1"
            answer = work / f"{process}.json"
            command = [sys.executable, __file__, process, str(work), str(answer)]
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
            assert ended.returncode == 0, ended.stdout + ended.stderr
            done[process] = json.loads(answer.read_text())
        return done[process]

    save_pipelines(work)
    yield run
    shutil.rmtree(work)


def test_stand_in_serves_ranges_and_users(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "a.bin").write_bytes(b"0123456789")
    with HubStandIn(tmp_path / "hub", tokens={TOKEN: "org"}) as hub:
        hub.add_repo("org/a", tmp_path / "repo")
        url = f"{hub.endpoint}/org/a/resolve/main/a.bin"
        for wanted, expected in (("bytes=4-", b"456789"), ("bytes=2-3", b"23"), ("bytes=8-99", b"89")):
            with urlopen(Request(url, headers={"Range": wanted})) as answer:
                assert answer.status == 206
                assert answer.read() == expected
        user = Request(f"{hub.endpoint}/api/whoami-v2", headers={"Authorization": f"Bearer {TOKEN}"})
        with urlopen(user) as answer:
            assert json.load(answer)["name"] == "org"
        assert hub.downloads == ["a.bin"] * 3
        assert hub.requests[-1].token == TOKEN


@pytest.mark.parametrize(
    ("process", "name"),
    [pytest.param(process, name, id=name) for process, steps in STEPS.items() for name in steps],
)
def test_hub(process: str, name: str, outcomes: Callable[[str], dict[str, str | None]]) -> None:
    error = outcomes(process)[name]
    if error is not None:
        pytest.fail(error, pytrace=False)


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(run_steps(sys.argv[1], Path(sys.argv[2]))))
