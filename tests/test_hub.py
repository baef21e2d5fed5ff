"""Loading from and pushing to the Hub, as users do it, against the stand-in that `conftest.py` starts."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline
from hub_standin import HubStandIn
from testing_utils import tiny_image, tiny_pipeline, tiny_pose

import diffusers_cfld
from diffusers_cfld import CFLDPipeline, PoseAdapter

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline, with the variant fp16 and files that nobody needs."""
    folder = tmp_path_factory.mktemp("hub") / "pipeline"
    tiny_pipeline().save_pretrained(folder)
    tiny_pipeline().to(torch.float16).save_pretrained(folder, variant="fp16")
    for name in OTHER_FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"---\nlicense: other\n---\n" if name == "README.md" else b"0")
    return folder


@pytest.fixture(scope="module")
def folder_v2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with other weights."""
    folder = tmp_path_factory.mktemp("hub") / "pipeline-v2"
    pipe = tiny_pipeline()
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias += 0.5
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def repository(hub_stand_in: HubStandIn, folder: Path, folder_v2: Path) -> None:
    hub_stand_in.add_repo(REPO, folder)
    hub_stand_in.add_repo(REPO, folder_v2, revision="v2")


@pytest.fixture(scope="module")
def pipe(folder: Path) -> CFLDPipeline:
    """The pipeline from its folder, without the Hub; not to be changed."""
    return CFLDPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def expected(pipe: CFLDPipeline) -> np.ndarray:
    """Its image."""
    return pixels(pipe)


def pixels(pipe: CFLDPipeline) -> np.ndarray:
    """A small image, always with the same inputs."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "np"}
    return pipe(image=tiny_image(), pose=tiny_pose(), generator=generator, **options).images


def assert_same_state(model: torch.nn.Module, expected: torch.nn.Module) -> None:
    assert type(model) is type(expected)
    actual, wanted = model.state_dict(), expected.state_dict()
    assert actual.keys() == wanted.keys()
    for name, value in actual.items():
        assert torch.equal(value, wanted[name]), name


def run_python(program: str, *arguments: object, **environment: str) -> str:
    """What a program prints in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    environment = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


class TestLoading:
    def test_loads_generically_after_the_import(self, hub: HubStandIn, expected: np.ndarray, tmp_path: Path) -> None:
        pipe = DiffusionPipeline.from_pretrained(REPO, cache_dir=tmp_path)
        assert type(pipe) is CFLDPipeline
        assert sorted(hub.downloads) == sorted(NEEDED)
        np.testing.assert_array_equal(pixels(pipe), expected)

    def test_loads_in_one_line(self, hub: HubStandIn, folder: Path, expected: np.ndarray) -> None:
        hub.add_repo("org/one-line", folder)
        pipe = CFLDPipeline.from_pretrained("org/one-line")
        assert sorted(hub.downloads) == sorted(NEEDED)
        assert all(request.token is None for request in hub.requests)
        np.testing.assert_array_equal(pixels(pipe), expected)

    def test_loads_a_revision(
        self, hub: HubStandIn, folder_v2: Path, pipe: CFLDPipeline, expected: np.ndarray, tmp_path: Path
    ) -> None:
        v2 = CFLDPipeline.from_pretrained(REPO, revision="v2", cache_dir=tmp_path)
        np.testing.assert_array_equal(pixels(v2), pixels(CFLDPipeline.from_pretrained(folder_v2)))
        assert np.abs(pixels(v2) - expected).max() > 0.01

        commit = hub.repos[REPO].refs["main"]
        assert Path(CFLDPipeline.download(REPO, revision=commit, cache_dir=tmp_path)).name == commit
        with pytest.raises(OSError, match=REPO) as raised:
            CFLDPipeline.from_pretrained(REPO, revision="v3", cache_dir=tmp_path)
        assert "v3" in str(raised.value.__cause__)

    def test_loads_a_variant(self, hub: HubStandIn, folder: Path, tmp_path: Path) -> None:
        options = {"variant": "fp16", "dtype": torch.float16}
        pipe = CFLDPipeline.from_pretrained(REPO, **options, cache_dir=tmp_path / "fp16")
        assert sorted(hub.downloads) == sorted(NEEDED_FP16)
        assert {getattr(pipe, name).dtype for name in COMPONENTS} == {torch.float16}
        np.testing.assert_array_equal(pixels(pipe), pixels(CFLDPipeline.from_pretrained(folder, **options)))
        with pytest.raises(ValueError, match="bf16"):
            CFLDPipeline.from_pretrained(REPO, variant="bf16", cache_dir=tmp_path / "bf16")

    def test_caches_in_cache_dir(self, hub: HubStandIn, expected: np.ndarray, tmp_path: Path) -> None:
        CFLDPipeline.from_pretrained(REPO, cache_dir=tmp_path)
        assert {path.name for path in tmp_path.glob("models--*")} == {"models--org--cfld-tiny"}
        assert len(hub.downloads) == len(NEEDED)

        hub.requests.clear()
        second = CFLDPipeline.from_pretrained(REPO, cache_dir=tmp_path)
        assert hub.requests  # asked for the newest commit
        assert not hub.downloads

        hub.requests.clear()
        local = CFLDPipeline.from_pretrained(REPO, cache_dir=tmp_path, local_files_only=True)
        PoseAdapter.from_pretrained(REPO, subfolder="pose_adapter", cache_dir=tmp_path, local_files_only=True)
        with pytest.raises(OSError, match=r"(?i)cache|disk"):
            CFLDPipeline.from_pretrained(REPO, cache_dir=tmp_path / "empty", local_files_only=True)
        assert not hub.requests
        for pipe in (second, local):
            np.testing.assert_array_equal(pixels(pipe), expected)

    def test_loads_offline_from_the_cache_and_explains_an_empty_one(
        self, hub: HubStandIn, folder: Path, folder_v2: Path, tmp_path: Path
    ) -> None:
        """In a process of its own, where `DiffusionPipeline` first meets the package's name without its import."""
        cache = tmp_path / "cache"
        for revision in ("main", "v2"):
            CFLDPipeline.download(REPO, revision=revision, cache_dir=cache)
        hub.requests.clear()
        program = """
            import sys
            from diffusers import DiffusionPipeline

            repo, cache, results = sys.argv[1:]
            try:
                DiffusionPipeline.from_pretrained(repo, cache_dir=cache)
            except ValueError as error:
                print(repr(error))
            print("diffusers_cfld" in sys.modules)
            from diffusers_cfld import CFLDInpaintPipeline  # one of the pipelines registers all

            DiffusionPipeline.from_pretrained(repo, cache_dir=cache).save_pretrained(f"{results}/main")
            from diffusers_cfld import CFLDPipeline, PoseAdapter

            CFLDPipeline.from_pretrained(repo, revision="v2", cache_dir=cache).save_pretrained(f"{results}/v2")
            PoseAdapter.from_pretrained(repo, subfolder="pose_adapter", cache_dir=cache)
            for cls, options in ((CFLDPipeline, {}), (PoseAdapter, {"subfolder": "pose_adapter"})):
                try:
                    cls.from_pretrained(repo, cache_dir=f"{results}/empty", **options)
                except OSError as error:
                    print(repr(str(error)))
        """
        printed = run_python(program, REPO, cache, tmp_path, HF_HUB_OFFLINE="1").splitlines()
        without_import, is_imported, of_pipeline, of_model = printed
        assert "diffusers_cfld.py as defined in `model_index.json` does not exist" in without_import
        assert is_imported == "False"
        assert "offline" in of_pipeline.lower() or "outgoing traffic has been disabled" in of_pipeline
        assert REPO in of_model
        assert not hub.requests
        for loaded, expected in ((tmp_path / "main", folder), (tmp_path / "v2", folder_v2)):
            for name in COMPONENTS:
                weights = f"{name}/{WEIGHTS}.safetensors"
                assert (loaded / weights).read_bytes() == (expected / weights).read_bytes(), weights

    def test_loads_a_private_repo_with_a_token(
        self, hub: HubStandIn, folder: Path, expected: np.ndarray, tmp_path: Path
    ) -> None:
        hub.add_repo("org/private", folder, private=True)
        pipe = CFLDPipeline.from_pretrained("org/private", token=TOKEN, cache_dir=tmp_path / "a")
        assert {request.token for request in hub.requests} == {TOKEN}
        np.testing.assert_array_equal(pixels(pipe), expected)
        for token in (None, "hf_wrong"):
            options = {"token": token, "cache_dir": tmp_path / "b"}
            with pytest.raises(OSError, match=r"org/private"):
                CFLDPipeline.from_pretrained("org/private", **options)
            with pytest.raises(OSError, match=r"org/private"):
                PoseAdapter.from_pretrained("org/private", subfolder="pose_adapter", **options)

    def test_explains_a_gated_repo(self, hub: HubStandIn, folder: Path, tmp_path: Path) -> None:
        hub.add_repo("org/gated", folder, gated=True)
        with pytest.raises(OSError, match=r"(?i)gated"):
            CFLDPipeline.from_pretrained("org/gated", cache_dir=tmp_path)
        assert not hub.downloads
        CFLDPipeline.download("org/gated", token=TOKEN, cache_dir=tmp_path)
        assert sorted(hub.downloads) == sorted(NEEDED)

    @pytest.mark.parametrize("token", [None, TOKEN])
    def test_explains_a_repo_that_does_not_exist(self, hub: HubStandIn, token: str | None) -> None:
        with pytest.raises(OSError, match=r"org/nothing"):
            CFLDPipeline.from_pretrained("org/nothing", token=token)
        with pytest.raises(OSError, match=r"org/nothing"):
            PoseAdapter.from_pretrained("org/nothing", subfolder="pose_adapter", token=token)

    @pytest.mark.parametrize(
        ("name", "class_name"),
        [
            ("appearance_encoder", "AppearanceEncoder"),
            ("pose_adapter", "PoseAdapter"),
            ("prompt_decoder", "PerceptionRefinedDecoder"),
            ("source_encoder", "SwinImageEncoder"),
        ],
    )
    def test_loads_each_model_alone(
        self, hub: HubStandIn, pipe: CFLDPipeline, tmp_path: Path, name: str, class_name: str
    ) -> None:
        model = getattr(diffusers_cfld, class_name).from_pretrained(REPO, subfolder=name, cache_dir=tmp_path)
        assert set(hub.downloads) == {f"{name}/config.json", f"{name}/{WEIGHTS}.safetensors"}
        assert_same_state(model, pipe.components[name])
        # diffusers' own entry point for a model whose class the repository names
        assert type(AutoModel.from_pretrained(REPO, subfolder=name, cache_dir=tmp_path)) is type(model)


class TestPushing:
    def test_a_pipeline(self, hub: HubStandIn, pipe: CFLDPipeline, expected: np.ndarray, tmp_path: Path) -> None:
        pipe.push_to_hub("org/new", token=TOKEN)

        assert {r.token for r in hub.requests if not r.path.startswith("/lfs/")} == {TOKEN}
        assert set(hub.files("org/new")) == {".gitattributes", "README.md", *NEEDED}
        loaded = CFLDPipeline.from_pretrained("org/new", cache_dir=tmp_path)
        np.testing.assert_array_equal(pixels(loaded), expected)

        card = hub.files("org/new")["README.md"].decode()
        front_matter = card.split("---\n")[1].splitlines()
        assert {"library_name: diffusers", "- diffusers-cfld"} <= set(front_matter)
        assert 'CFLDPipeline.from_pretrained("org/new"' in card
        assert "DeepFashion" not in card
        assert f"The scheduler is `{type(pipe.scheduler).__name__}`" in card

        with pytest.raises(OSError, match="401"):
            pipe.push_to_hub("org/forbidden", token="hf_wrong")
        assert "org/forbidden" not in hub.repos

    def test_a_variant_while_saving(
        self, hub: HubStandIn, pipe: CFLDPipeline, expected: np.ndarray, tmp_path: Path
    ) -> None:
        folder = tmp_path / "pipeline"
        pipe.save_pretrained(folder, push_to_hub=True, repo_id="org/saved", variant="fp16", private=True, token=TOKEN)

        saved = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert saved == {"README.md", *NEEDED_FP16}
        files = hub.files("org/saved")
        assert set(files) == {".gitattributes", *saved}
        assert all(files[name] == (folder / name).read_bytes() for name in saved)
        assert hub.repos["org/saved"].private
        options = {"token": TOKEN, "cache_dir": tmp_path / "cache"}
        loaded = CFLDPipeline.from_pretrained("org/saved", variant="fp16", **options)
        np.testing.assert_array_equal(pixels(loaded), expected)

        # A repository with nothing but a variant does not load without its name, so the card has it.
        with pytest.raises(OSError, match="no file named"):
            CFLDPipeline.from_pretrained("org/saved", **options)
        assert 'CFLDPipeline.from_pretrained("org/saved", variant="fp16"' in files["README.md"].decode()

    @pytest.mark.parametrize("name", ["source_encoder", "unet", "prompt_decoder"])
    def test_a_pipeline_without_a_component(self, hub: HubStandIn, pipe: CFLDPipeline, name: str) -> None:
        repo_id = f"org/without-{name}"
        CFLDPipeline(**{**pipe.components, name: None}).push_to_hub(repo_id, token=TOKEN)
        assert f"{name}/config.json" not in hub.files(repo_id)
        assert "README.md" in hub.files(repo_id)

    def test_the_card_that_the_folder_has(self, hub: HubStandIn, pipe: CFLDPipeline, tmp_path: Path) -> None:
        card = "---\nlicense: mit\n---\n\nWritten by hand.\n"
        (tmp_path / "README.md").write_text(card, encoding="utf-8")
        pipe.save_pretrained(tmp_path, push_to_hub=True, repo_id="org/own-card", token=TOKEN)
        assert hub.files("org/own-card")["README.md"].decode() == card
        assert (tmp_path / "README.md").read_text(encoding="utf-8") == card

        # Nor does a later push replace what the owner wrote.
        pipe.push_to_hub("org/own-card", token=TOKEN)
        assert hub.files("org/own-card")["README.md"].decode() == card

    def test_a_model_alone(self, hub: HubStandIn, pipe: CFLDPipeline, tmp_path: Path) -> None:
        pipe.pose_adapter.push_to_hub("org/pose-adapter", token=TOKEN)
        files = {".gitattributes", "README.md", "config.json", f"{WEIGHTS}.safetensors"}
        assert set(hub.files("org/pose-adapter")) == files
        assert_same_state(PoseAdapter.from_pretrained("org/pose-adapter", cache_dir=tmp_path), pipe.pose_adapter)


class _Evil:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (open, (str(self.mark), "w"))


class TestSafety:
    """`mark` is the file that exists once something of a repository has been executed."""

    @pytest.fixture
    def mark(self, tmp_path: Path) -> Path:
        return tmp_path / "executed"

    @pytest.fixture
    def evil(self, hub: HubStandIn, folder: Path, tmp_path: Path, mark: Path) -> Callable[..., str]:
        def add_repo(repo_id: str, *names: str, without: str = "") -> str:
            """A repository with the files `names` added."""
            copy = tmp_path / repo_id
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.fp16.safetensors"))
            for name in names:
                if name.endswith(".py"):
                    code = f"open({str(mark)!r}, 'w').close()\nclass CFLDPipeline: pass\nclass PoseAdapter: pass\n"
                    (copy / name).write_text(code)
                else:
                    (copy / name).write_bytes(pickle.dumps(_Evil(mark)))
            hub.add_repo(repo_id, copy, ignore=lambda name: name == without)
            return repo_id

        return add_repo

    def test_no_python_file_of_a_repo_is_executed(
        self, evil: Callable[..., str], mark: Path, expected: np.ndarray, tmp_path: Path
    ) -> None:
        repo_id = evil("org/python", "pipeline.py", "pose_adapter/pose_adapter.py", "pose_adapter/__init__.py")
        for cls in (CFLDPipeline, DiffusionPipeline):
            pipe = cls.from_pretrained(repo_id, cache_dir=tmp_path / "cache")
            assert type(pipe) is CFLDPipeline
            assert pipe.pose_adapter.__class__.__module__ == "diffusers_cfld.models.pose_adapter"
            assert not mark.exists()
        np.testing.assert_array_equal(pixels(pipe), expected)

        # The name that diffusers would take for a component's own code: it has to ask for `trust_remote_code`.
        repo_id = evil("org/python-module", "pose_adapter/diffusers_cfld.py")
        with pytest.raises(ValueError, match="trust_remote_code"):
            CFLDPipeline.from_pretrained(repo_id, cache_dir=tmp_path / "cache")
        assert not mark.exists()

    def test_pickles_beside_safetensors_are_not_fetched(
        self, hub: HubStandIn, evil: Callable[..., str], mark: Path, tmp_path: Path
    ) -> None:
        names = (f"pose_adapter/{WEIGHTS}.bin", "unet/pytorch_model.bin", "pytorch_model.bin")
        CFLDPipeline.from_pretrained(evil("org/pickles", *names), cache_dir=tmp_path / "cache")
        assert not [name for name in hub.downloads if name.endswith(".bin")]
        assert not mark.exists()

    @pytest.mark.parametrize("use_safetensors", [None, True])
    def test_no_pickle_of_a_repo_is_executed(
        self, evil: Callable[..., str], mark: Path, tmp_path: Path, use_safetensors: bool | None
    ) -> None:
        weights = f"pose_adapter/{WEIGHTS}"
        repo_id = evil(f"org/pickle-{use_safetensors}", f"{weights}.bin", without=f"{weights}.safetensors")
        options = {"use_safetensors": use_safetensors, "cache_dir": tmp_path / "cache"}
        with pytest.raises((OSError, pickle.UnpicklingError)):
            PoseAdapter.from_pretrained(repo_id, subfolder="pose_adapter", **options)
        with pytest.raises((OSError, pickle.UnpicklingError)):
            CFLDPipeline.from_pretrained(repo_id, **options)
        assert not mark.exists()


def test_the_stand_in_serves_ranges_and_users(hub: HubStandIn, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    hub.add_repo("org/a", tmp_path)
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


def test_nothing_but_localhost_can_be_reached() -> None:
    with pytest.raises(pytest.fail.Exception, match="tried to reach"):
        urlopen("http://192.0.2.1/")
