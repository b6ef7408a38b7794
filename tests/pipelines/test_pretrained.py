import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from pipelines.pretrained import PretrainedModel, weights_identity
from tests.pipelines import world
from tests.pipelines.tiny_checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PretrainedModel:
    return write_checkpoint(tmp_path_factory.mktemp("model"), world.MODEL)


def loaded(model: PretrainedModel) -> torch.nn.Module:
    return model.load(dtype=torch.float32, attention="sdpa")


def test_a_checkpoint_is_known_by_its_content_and_not_by_its_place(model: PretrainedModel, tmp_path: Path) -> None:
    copied = shutil.copytree(model.path, tmp_path / "copied")
    assert weights_identity(str(copied), None) == model.identity.weights
    other = write_checkpoint(tmp_path / "other", world.MODEL, seed=1)
    assert other.identity != model.identity
    (copied / "tokenizer_config.json").write_text("{}")
    assert weights_identity(str(copied), None) != model.identity.weights


def test_a_folder_with_pickled_weights_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"has pytorch_model\.bin but no \*\.safetensors; pickled weights") as caught:
        weights_identity(str(tmp_path), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["/no/such/folder", "./missing", "a/b/c"])
def test_a_path_that_is_neither_folder_nor_hub_name_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="no such folder; give a checkpoint's folder or a hub name"):
        weights_identity(path, None)


def test_a_hub_name_is_known_by_name_and_revision_without_a_network() -> None:
    assert weights_identity("Qwen/Qwen2-VL-2B-Instruct", "abc") == "hub:Qwen/Qwen2-VL-2B-Instruct@abc"


def test_sizes_that_a_study_was_planned_with_must_be_those_of_the_checkpoint(model: PretrainedModel) -> None:
    with pytest.raises(ValueError, match=r"model\.patch_size is 14, but .* has 8; set it so"):
        loaded(dataclasses.replace(model, patch_size=14))


def test_a_checkpoint_that_lacks_weights_is_refused_and_not_filled_with_random_ones(
    model: PretrainedModel, tmp_path: Path
) -> None:
    broken = shutil.copytree(model.path, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if "mlp" in name and "visual" not in name)
    save_file({key: weight for key, weight in weights.items() if key != name}, broken / "model.safetensors")
    with pytest.raises(ValueError, match=r"broken lacks 1 of the weights of Qwen2VLFor\w+, as \S+mlp\S+; get it whole"):
        loaded(dataclasses.replace(model, path=str(broken)))


def test_the_language_model_can_come_from_a_text_checkpoint(model: PretrainedModel, tmp_path: Path) -> None:
    stock = loaded(model)
    text = stock.config.get_text_config()  # type: ignore[union-attr, operator]
    config = Qwen2Config(
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        tie_word_embeddings=False,
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "text")
    mixed_model = dataclasses.replace(model, language=str(tmp_path / "text"))
    mixed, language = loaded(mixed_model).state_dict(), load_file(tmp_path / "text" / "model.safetensors")
    for name, tensor in language.items():
        assert torch.equal(mixed[name.replace("model.", "model.language_model.", 1)], tensor)
    for name, tensor in stock.state_dict().items():
        if "visual" in name:
            assert torch.equal(mixed[name], tensor)
    assert mixed_model.identity != model.identity
    config.hidden_size = 64
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"model\.language '.*wide' does not fit"):
        loaded(dataclasses.replace(model, language=str(tmp_path / "wide")))
