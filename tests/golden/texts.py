"""Texts for the golden token ids: each small one is about one thing that tokenizers get wrong."""

import random

TEXTS = {
    "empty": "",
    "one_space": " ",
    "english": "The quick brown fox jumps over the lazy dog. It's 12:30, isn't it? We'll see; they'd've said so.",
    "contractions": "I'm you're he's WE'LL They'D it'S don't DON'T 'tis 'Twas o'clock l'été x'y ''s 'ſ 'st ’s",
    "python":
        "def f(x: int) -> list[int]:\n\t\"\"\"Doc.\"\"\"\n    return "
        "[i**2 for i in range(x) if i % 3 != 0]  # ok\n\n\n",
    "c": "#include <stdio.h>\r\nint main(void) {\r\n\tprintf(\"%d\\n\", 0x1F << 3);\r\n\treturn 0;\r\n}\r\n",
    "json": '{"a": [1, 2.50, -3e10, null], "b": {"c": "\\u00e9\\n"}}',
    "html": "<div class='x'>a &amp; b<br/></div><!-- c --><|notatoken|></s><s>",
    "digits": "0 1 12 123 1234 12345 1234567890123 3.14159 1,000,000 ٠١٢٣ १२३ 一二三 ①② ½ x² Ⅷ 10⁻³",
    "spaces": "a  b   c    d     e      f       g        h" + " " * 33 + "i" + " " * 130,
    "tabs_newlines": "\t\ta\t \tb\n\n\nc\n \n  \n\td \r\n \r\n\re\r\r\n\f\v f \n",
    "unicode_spaces": "a\u00a0b\u2003c\u2009 d\u3000e\u200bf\u2028g\u2029h\u0085i\u1680j\ufeffk\u202fl",
    "emoji": "😀👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇫🇷🇯🇵 ❤️ ☺ 1️⃣ 🧑🏿‍🚀🫠",
    "chinese": "今天天气很好，我们去公园散步吧。“你好”！（测试）１２３ＡＢＣ",
    "japanese": "東京タワーは高さ333メートルです。カタカナ、ひらがな、漢字ｶﾀｶﾅ",
    "korean": "안녕하세요. 오늘은 날씨가 좋네요! ㅋㅋㅋ 한국어",
    "arabic": "مَرْحَبًا بِالْعَالَم، كيف حالك؟ ١٢٣ لا إله",
    "hebrew": "שָׁלוֹם עוֹלָם, מה שלומך? בְּרֵאשִׁית",
    "devanagari": "नमस्ते दुनिया! क्षत्रिय हिन्दी में १२३४ कि कु",
    "thai": "สวัสดีชาวโลก กำลังทดสอบ ๑๒๓",
    "tamil_bengali": "வணக்கம் உலகம் ওহে বিশ্ব ক্ষ",
    "cyrillic_greek": "Съешь ещё этих мягких французских булок. Γειά σου Κόσμε! ΐ Ω",
    "vietnamese_nfc": "Tiếng Việt có dấu: ắ ằ ẳ ẵ ặ",
    "vietnamese_nfd": "Tie\u0302\u0301ng Vie\u0323\u0302t co\u0301 da\u0302\u0301u",
    "combining":
        "e\u0301 a\u030a\u0323 Z\u0351\u036b\u0343\u036aA\u030aL\u0334G\u0321O "
        "\u0301 \u0301\u0302 o\u0308n a \u20dd ﬁ Å Ω",
    "greek_math": "∀ε>0 ∃δ: |x−a|<δ ⇒ |f(x)−L|<ε; ∑ᵢ₌₁ⁿ i = n(n+1)/2 ≤ ∞ 𝔸𝒷𝟛 𝕏",
    "control":
        "a\x00b\x01c\x07d\x1be[0m\x7fg\x80h\x9fi\u00adj\u200ck\u200dl\u202em\ufffdn\ufffeo\U000e0001p\U0010fffdq",
    "rare_planes": "𐍈𐎀𒀀𓀀𝄞🂡𠀀𪚥𫝀 ꙮ ᚠᛇ ᏣᎳᎩ ߒߞߏ ⠃⠗ ꧁ ﷽",
    "punctuation":
        "...!!!???---___***///\\\\\\###@@@$$$%%%^^^&&&((()))[[[]]]{{{}}}<<<>>>|||~~~```'''\"\"\" "
        "– — … « » ¿¡ § ¶ • €£¥",
    "url":
        "https://example.com/a/b?c=d&e=%20f#g user.name+tag@mail.example.org C:\\Users\\x\\y.txt ../../z v1.2.3-rc4",
    "camel": "HTTPServerError parseJSONString snake_case_name SCREAMING_CASE kebab-case-name x1y2Z3 aB CdE",
    "mixed": "Hello世界مرحبا123नमस्ते👋 привет\n\tend",
    "chat": "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nHi <|im_end|> there<|im_end|>\n",
    "specials":
        "<|endoftext|><|endoftext|> x<|im_start|><|im_star|><|im_end|>y "
        "<tool_call>{\"a\": 1}</tool_call><repo_name>z",
    "fim": "<|fim_prefix|>def f():<|fim_suffix|>\n    return x<|fim_middle|> <file_sep><filename>a.py<gh_stars>1",
    "gemma":
        "<start_of_turn>user\n<h1>Hi</h1>\n\n\n\t\t<table><td> a  b </td></table>" + "\n" * 40 + " " * 40 + "\t" * 40
        + "x> </y <end_of_turn>\n<start_of_turn>model\n<unused7>[multimodal]",
    "spm_specials": "<s>a</s> b</s>  c<unk>d<0x0A>e▁f ▁ g[INST] h [/INST]",
}


def long_text(size: int = 1_000_000, seed: int = 20240607) -> str:
    """`size` characters: pieces of the texts above, assigned characters from everywhere, runs of one character."""
    random_ = random.Random(seed)
    texts = [text for text in TEXTS.values() if text]
    blocks = [(0x20, 0x7F), (0x20, 0x7F), (0xA1, 0x24F), (0x390, 0x3CE), (0x410, 0x44F), (0x5D0, 0x5EA), (0x621, 0x64A),
              (0x904, 0x939), (0xE01, 0xE30), (0x3041, 0x3096), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0x1F600, 0x1F64F)]
    pieces: list[str] = []
    length = 0
    while length < size:
        kind = random_.random()
        if kind < 0.6:
            text = random_.choice(texts)
            start = random_.randrange(len(text))
            piece = text[start:start + random_.randrange(1, 60)]
        elif kind < 0.9:
            low, high = random_.choice(blocks)
            piece = "".join(chr(random_.randint(low, high)) for _ in range(random_.randrange(1, 20)))
        else:
            piece = random_.choice(" \n\t\r-=aA0.é ") * random_.randrange(1, 40)
        pieces.append(piece)
        length += len(piece)
    return "".join(pieces)[:size]
