import json
import random
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.data.synthetic import draw_example, generate, render_frames
from videorl.imports import fix_imports
from videorl.models.tiny import INIT_STD, RESPONSE_TAGS, SPECIAL_TOKENS, TinySize, build_tiny_model, main, row_texts

fix_imports()
from tokenizers import Tokenizer  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    Qwen2_5_VLProcessor,
)

QUESTION = "Which colour appears first? (A) red (B) green (C) blue (D) yellow"
RESPONSE = "<think>green</think><answer>B</answer>"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    generate(folder, seed=0, num_train=12, num_eval=0, sft_copies=20)
    return list(row_texts(map(json.loads, (folder / "sft.jsonl").read_text().splitlines())))


@pytest.fixture(scope="module")
def folder(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "model"
    build_tiny_model(path, texts, seed=0)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def test_architecture(model, tokenizer):
    config = model.config
    text, vision = config.text_config, config.vision_config
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (128, 256, 2)
    assert (text.num_attention_heads, text.num_key_value_heads) == (4, 2)
    assert text.rope_parameters == {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    assert (vision.hidden_size, vision.intermediate_size, vision.depth, vision.num_heads) == (64, 128, 2, 4)
    assert (vision.window_size, list(vision.fullatt_block_indexes), vision.tokens_per_second) == (56, [1], 2)
    assert (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size) == (14, 2, 2)
    assert text.vocab_size % 64 == 0 and 0 <= text.vocab_size - len(tokenizer) < 64


def test_number_of_parameters(model):
    block = (64 * 192 + 192) + (64 * 64 + 64) + 2 * (64 * 128 + 128) + (128 * 64 + 64) + 2 * 64
    merger = 64 + (256 * 256 + 256) + (256 * 128 + 128)
    vision = 2 * 3 * 14 * 14 * 64 + 2 * block + merger
    layer = (128 * 128 + 128) + 2 * (128 * 64 + 64) + 128 * 128 + 3 * 128 * 256 + 2 * 128
    embedding_and_head = 2 * model.config.text_config.vocab_size * 128
    assert model.model.visual.num_parameters() == vision == 257_344
    assert model.num_parameters() == vision + 2 * layer + 128 + embedding_and_head


def test_initial_weights(model):
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            # At least 4096 values each: the standard error of the standard deviation is below 1.2 %.
            assert parameter.std().item() == pytest.approx(INIT_STD, rel=0.05), name
            assert parameter.mean().item() == pytest.approx(0, abs=0.004), name
        else:
            assert torch.equal(parameter, torch.full_like(parameter, 0.0 if name.endswith("bias") else 1.0)), name


def test_token_ids_agree(folder, model, tokenizer):
    config = model.config
    for key, token in (
        ("image_token_id", "<|image_pad|>"),
        ("video_token_id", "<|video_pad|>"),
        ("vision_start_token_id", "<|vision_start|>"),
        ("vision_end_token_id", "<|vision_end|>"),
    ):
        assert getattr(config, key) == tokenizer.convert_tokens_to_ids(token)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    generation = GenerationConfig.from_pretrained(folder)
    for ids in (config.text_config, generation):
        assert (ids.eos_token_id, ids.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert len({tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS + RESPONSE_TAGS}) == 12


def test_saved_tokenizer_is_the_trained_one(folder, texts, tokenizer, tmp_path):
    """Transformers puts Qwen2's pre-tokenizer into whatever it loads; the file itself must hold the same one."""
    written = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in {*texts, QUESTION}:
        ids = written.encode(text).ids
        assert tokenizer.encode(text) == reloaded.encode(text) == ids
        assert tokenizer.decode(ids) == text


def test_known_words_are_one_token(tokenizer):
    assert tokenizer.tokenize(RESPONSE + "<|im_end|>") == [
        *("<think>", "green", "</think>", "<answer>", "B", "</answer>", "<|im_end|>")
    ]
    assert tokenizer.tokenize("<answer>2 to 5</answer>") == ["<answer>", "2", "Ġto", "Ġ", "5", "</answer>"]
    assert tokenizer.tokenize("How many squares appear?") == ["How", "Ġmany", "Ġsquares", "Ġappear", "?"]


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_text_tokenises(tokenizer, text):
    text = unicodedata.normalize("NFC", text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tags_stay_in_decoded_text_and_special_tokens_do_not(tokenizer):
    ids = tokenizer.encode("<|im_start|>" + RESPONSE + "<|video_pad|><|im_end|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == RESPONSE


def test_chat_template(folder):
    processor = AutoProcessor.from_pretrained(folder)
    user = {"role": "user", "content": [{"type": "video"}, {"type": "image"}, {"type": "text", "text": "Hi"}]}
    media = "<|vision_start|><|video_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|>"
    assert processor.apply_chat_template([user], add_generation_prompt=True, tokenize=False) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{media}Hi<|im_end|>\n<|im_start|>assistant\n"
    )
    system, assistant = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Yes"}
    assert processor.apply_chat_template([system, user, assistant], tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\n{media}Hi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
    )


def test_processor_and_forward(folder, model):
    processor = AutoProcessor.from_pretrained(folder)
    message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}
    prompt = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)

    def logits_of(frames):
        video = torch.from_numpy(frames).permute(0, 3, 1, 2)  # [T, C, H, W]
        inputs = processor(text=[prompt], videos=[video], return_tensors="pt")
        assert inputs["video_grid_thw"].tolist() == [[8, 4, 4]]
        assert (inputs["input_ids"] == model.config.video_token_id).sum() == 8 * 4 * 4 // 4
        inputs.pop("video_metadata", None)
        with torch.no_grad():
            logits = model(**inputs).logits
        assert logits.shape == (*inputs["input_ids"].shape, model.config.text_config.vocab_size)
        return logits[0, -1]

    frames = render_frames(draw_example("first", random.Random(0)).squares)[::4]
    seen, blank = logits_of(frames), logits_of(np.full_like(frames, 90))
    assert torch.isfinite(seen).all()
    assert (seen - blank).abs().max() > 1e-3


def test_same_arguments_same_files(folder, texts, tmp_path):
    state = torch.get_rng_state()
    build_tiny_model(tmp_path / "again", texts, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    names = sorted(file.name for file in folder.iterdir())
    assert names == sorted(file.name for file in (tmp_path / "again").iterdir())
    assert all((folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)

    build_tiny_model(tmp_path / "other", texts, seed=1)
    changed = {name for name in names if (folder / name).read_bytes() != (tmp_path / "other" / name).read_bytes()}
    assert changed == {"model.safetensors"}


def test_size_is_adjustable(texts, tmp_path):
    size = TinySize(hidden=192, layers=1, vision_hidden=32, vision_depth=3, vision_heads=2)
    model = build_tiny_model(tmp_path / "model", texts, size=size)
    text, vision = model.config.text_config, model.config.vision_config
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (192, 384, 1)
    assert (text.num_attention_heads, text.num_key_value_heads) == (6, 3)
    assert (vision.hidden_size, vision.depth, vision.num_heads, vision.out_hidden_size) == (32, 3, 2, 192)
    assert list(vision.fullatt_block_indexes) == [2]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden": 96}, "hidden=96"),
        ({"hidden": 0}, "hidden=0"),
        ({"vision_hidden": 40}, "vision_hidden=40"),
        ({"layers": 0}, "layers=0"),
        ({"vision_depth": 0}, "vision_depth=0"),
    ],
)
def test_impossible_sizes_are_refused(change, named):
    with pytest.raises(ValueError, match=named):
        TinySize(**change)


def test_row_texts():
    parts = [{"type": "video"}, {"type": "text", "text": "When?"}]
    rows = [
        {"prompt": "Which?", "choices": ["red", "blue"], "response": "<answer>A</answer>"},
        {"prompt": "Why?", "choices": None, "chosen": "so", "rejected": "not so"},
        {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}], "choices": None},
    ]
    texts = [text for text in row_texts(rows) if text]
    assert texts == ["Which?", "(A) red (B) blue", "<answer>A</answer>", "Why?", "so", "not so", "Be brief.", "When?"]


def test_folder_appears_when_complete(tmp_path, monkeypatch):
    path = tmp_path / "model"
    with monkeypatch.context() as patch:
        patch.setattr(Qwen2_5_VLProcessor, "save_pretrained", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_tiny_model(path, ["Hi"])
    assert not path.exists()
    build_tiny_model(path, ["Hi"])
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    with pytest.raises(FileExistsError, match="another folder"):
        build_tiny_model(path, ["Hi"])


def interrupted(*_):
    raise KeyboardInterrupt


def test_command_line_prints_the_number_of_parameters(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi"}\n')
    main(["--out", str(tmp_path / "model"), "--texts", str(tmp_path / "rows.jsonl"), "--seed", "3"])
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert f"{model.num_parameters():,} parameters" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "model"), "--texts", str(tmp_path / "rows.jsonl")])
    assert "another folder" in capsys.readouterr().err
