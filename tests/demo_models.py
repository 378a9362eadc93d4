"""`python -m tests.demo_models` writes the demo's two models: a configuration and a tokenizer each.

There are no weights: vLLM makes up random ones (`--load-format dummy`). Every token is a whole character or a
whole word, so that random tokens are valid text and no stream waits for the rest of a character.
"""

from __future__ import annotations

import json
import string
from typing import Any

from memoria.demo import config_path

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, UNKNOWN, TURN_START, TURN_END)

# ASCII with tab, newline and carriage return; Latin, Greek and Cyrillic letters; a few marks.
CHARACTERS = (
    *(character for character in string.printable if character not in "\x0b\x0c"),
    *(
        chr(code)
        for first, last in ((0xA1, 0x17F), (0x386, 0x3CE), (0x400, 0x45F))
        for code in range(first, last + 1)
    ),
    *"–—‘’“”…€",
)
WORDS = """
    the of and to in is that it for on with as are be at one have this from by not but what all were when
    we there can an your which their will each about how up out them then many some so these would other
    into has more her two him see time could no make than first been its who now people my made over did
    down only way find use may water long little very after word our just where most know get through
    back much before go good new write man too any day same right look think also around another came
    come work three must because does part even place well such here take why help put different away
    again off went old number great tell men say small every found still between name should home big
    give air line set own under read last never us left end along while might next sound below saw
    something thought both few those always show large often together asked house world going want school
    important until form food keep children feet land side without boy once animal life enough took four
    head above kind began almost live page got earth need far hand high year mother light country father
    let night picture being study second soon story since white ever paper hard near sentence better best
    across during today however sure knew try told young sun thing whole hear example heard several
    change answer room sea against top turned learn point city play toward five himself usually money
    seen car morning memory engine model token
"""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{TURN_START}{{{{ message.role }}}}\n{{{{ message.content }}}}{TURN_END}\n"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{TURN_START}assistant\n{{% endif %}}"
)

MAX_LENGTH = 2048
# Scores of a unigram tokenizer are log probabilities: a word costs less than its letters.
_WORD_SCORE, _CHARACTER_SCORE = -5.0, -10.0


def _special_token(number: int, token: str) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, **plain, "special": True}


def tokenizer() -> dict[str, Any]:
    """A unigram tokenizer in the `tokenizers` library's own file format."""
    words = sorted(set(WORDS.split()))
    vocabulary: list[tuple[str, float]] = [
        *((token, 0.0) for token in SPECIAL),
        *((character, _CHARACTER_SCORE) for character in CHARACTERS),
        *((text, _WORD_SCORE) for word in words for text in (f" {word}", word) if len(text) > 1),
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special_token(number, token) for number, token in enumerate(SPECIAL)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": r" ?\w+|\W"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "Unigram",
            "unk_id": SPECIAL.index(UNKNOWN),
            "vocab": vocabulary,
            "byte_fallback": False,
        },
    }


def tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_LENGTH,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def model_config(**more: Any) -> dict[str, Any]:
    """Qwen3, the family of memoria's default models, with two layers."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,  # the smallest that vLLM's CPU attention has a kernel for
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "max_position_embeddings": MAX_LENGTH,
        "vocab_size": len(tokenizer()["model"]["vocab"]),
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": SPECIAL.index(END_OF_TEXT),
        "eos_token_id": SPECIAL.index(TURN_END),
        **more,
    }


def files() -> dict[str, str]:
    """Every file by its path under `models/`."""
    # With this key vLLM honours the `dimensions` parameter of /v1/embeddings, as for a Matryoshka model.
    configs = {"tiny-embedding": model_config(is_matryoshka=True), "tiny-generation": model_config()}
    made: dict[str, str] = {}
    for name, config in configs.items():
        made[f"{name}/config.json"] = json.dumps(config, indent=2) + "\n"
        made[f"{name}/tokenizer.json"] = (
            json.dumps(tokenizer(), ensure_ascii=False, separators=(",", ":")) + "\n"
        )
        made[f"{name}/tokenizer_config.json"] = json.dumps(tokenizer_config(), indent=2) + "\n"
    return made


def main() -> None:
    models = config_path().parent / "models"
    for name, text in files().items():
        path = models / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
