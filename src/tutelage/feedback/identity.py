"""Whether a text tells which model wrote it: such a response is not judged blind.

A name alone tells nothing (a llama is an animal, Claude a painter): what counts is who speaks of themselves. Only the
exact name of a producer (`qwen2.5-7b`) counts wherever it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

NAMES: Final = (
    r"chat ?gpt(?:[- ]?\d\w*)?", r"gpt[- ]?\d[\w.]*", r"claude(?: \d[\w.]*| opus| sonnet| haiku)?", r"gemini", r"gemma",
    r"bard", r"copilot", r"bing chat", r"llama[- ]?\d?[\w.]*", r"mi[sx]tral(?: ai)?", r"qwen[\w.-]*", r"tongyi qianwen",
    r"deepseek[\w.-]*", r"grok", r"kimi", r"ernie(?: bot)?", r"vicuna", r"alpaca", r"falcon", r"phi-\d", r"gigachat",
    r"yandexgpt", r"alice ai", r"open ?assistant", r"command[- ]r", r"文心一言", r"通义千问", r"豆包", r"智谱清言",
    r"deepseek助手",
)  # fmt: skip
"""Models as they call themselves."""

MAKERS: Final = (
    "openai", "anthropic", "google", "deepmind", "meta", "facebook", "mistral ai", "mistral", "alibaba", "deepseek",
    "microsoft", "xai", "moonshot", "baidu", "yandex", "sber", "cohere", "nvidia", "hugging ?face", "laion", "阿里巴巴",
    "阿里云", "百度", "字节跳动", "深度求索", "яндекс\\w*", "сбер\\w*",
)  # fmt: skip
"""Who made them."""

ENDS = r"(?=\s*(?:[,.;:!?)，。、；！？]|$))"
"""The clause is over: `as an AI, I` and not `as an AI researcher`."""
STARTS = r"(?:^|(?<=[.!?:\n])|(?<=[.!?:\n] ))\s*"
"""A sentence begins: `Como IA, ...` and not `tecnologías como IA, radio`."""


def _patterns(names: str) -> list[str]:
    """For each language: what a model says of itself; `names` is an alternation."""
    named = rf"(?:{names})(?![\w-])(?!\s+(?-i:[A-Z]))"  # `I am Claude Monet` is somebody else
    makers = rf"(?:{'|'.join(MAKERS)})(?!\w)"
    made = r"(?:developed|trained|created|made|built|designed)"
    kind = (
        r"(?:ai|a\.i\.|artificial intelligence)"
        r"(?:[ -](?:language )?(?:model|assistant|chatbot|chat bot|bot|system|agent|program))?"
        r"|(?:large )?language model"
    )
    goes_on = rf"(?:{ENDS}|(?=\s+(?:i\b|and\b|that\b|who\b|so\b|{made}|called\b|named\b)))"
    return [
        # English
        rf"\bas (?:an? )?(?:{kind}){goes_on}",
        rf"\bi(?:'m|’m| am) (?:just |only |merely )?(?:an? |the )?(?:{kind}){goes_on}",
        rf"\b(?:i(?:'m|’m| am)|my name is|call me|this is|(?:talking|speaking|chatting) (?:to|with)) "
        rf"(?:an? |the )?{named}",
        rf"\bas {named}{ENDS}",
        rf"\bi(?:'m|’m| am| was| have been)\b[^.!?,;\n]{{0,40}}\b{made}(?: and \w+)? by (?:the )?{makers}",
        # German
        rf"\bals (?:eine )?(?:ki|künstliche intelligenz|ki-(?:modell|assistent|sprachmodell)|(?:großes )?sprachmodell)"
        rf"{ENDS}",
        r"\bals (?:eine? )?(?:ki|ki-\w+|künstliche intelligenz|(?:großes )?sprachmodell) (?:kann|habe|bin|darf) ich\b",
        r"\bich bin (?:nur )?(?:ein(?:e)? )?(?:ki\b(?!-)|ki-(?:modell|assistent|sprachmodell)|künstliche intelligenz|"
        r"(?:großes )?sprachmodell)",
        rf"\b(?:ich bin|ich heiße|mein name ist) {named}",
        rf"\bich (?:wurde|bin)\b[^.!?,;\n]{{0,30}}von {makers}",
        # French
        r"\ben tant qu(?:e |'|’)(?:une? )?(?:assistante? )?(?:ia|intelligence artificielle|(?:grand )?modèle de "
        rf"langage){ENDS}",
        r"\bje suis (?:juste |seulement )?(?:une? )?(?:assistante? )?(?:ia\b|intelligence artificielle|(?:grand )?"
        r"modèle (?:de langage|d'ia))",
        rf"\b(?:je suis|je m(?:'|’)appelle|mon nom est) {named}",
        rf"\bj(?:'|’)ai été [^.!?,;\n]{{0,30}}par {makers}",
        # Spanish
        rf"{STARTS}como (?:una? )?(?:ia|inteligencia artificial|(?:gran )?modelo de (?:lenguaje|ia)){ENDS}",
        r"\bsoy (?:solo )?(?:una? )?(?:ia\b|inteligencia artificial|(?:gran )?modelo de (?:lenguaje|ia))",
        rf"\b(?:soy|me llamo|mi nombre es) {named}",
        rf"\b(?:fui|he sido) [^.!?,;\n]{{0,30}}por {makers}",
        # Italian
        rf"{STARTS}come (?:un(?:a |'|’)?)?\s?(?:ia|intelligenza artificiale|modello (?:linguistico|di linguaggio))"
        rf"{ENDS}",
        r"\bsono (?:solo )?un(?:a |'|’| )?(?:ia\b|intelligenza artificiale|modello (?:linguistico|di linguaggio))",
        rf"\b(?:sono|mi chiamo|il mio nome è) {named}",
        rf"\bsono stat[oa] [^.!?,;\n]{{0,30}}da {makers}",
        # Portuguese
        rf"{STARTS}como (?:uma? )?(?:ia|inteligência artificial|modelo de (?:linguagem|ia)){ENDS}",
        r"\bsou (?:apenas )?(?:uma? )(?:ia\b|inteligência artificial|modelo de (?:linguagem|ia))",
        rf"\b(?:sou (?:o |a )?|me chamo|meu nome é) ?{named}",
        rf"\bfui [^.!?,;\n]{{0,30}}pel[oa] {makers}",
        # Chinese
        r"作为(?:一个|一名|一款)?(?:人工智能|AI|大?型?语言模型)(?:助手|模型|程序|系统)?(?=[，,。]|我)",
        r"我(?:只)?是(?:一个|一名|一款)?(?:由[^。，,]{1,20}(?:开发|训练|研发|创建)的)?(?:人工智能|AI|大?型?语言模型)"
        r"(?:语言模型|助手|模型|程序|系统)?(?=[，,。！!]|$)",
        rf"我(?:叫|是|的名字是)(?:{names})",
        # Japanese
        r"(?:AI|人工知能|(?:大規模)?言語モデル)(?:アシスタント)?(?:として|なので|ですので)",
        r"(?:私|わたし|僕)は[^。、]{0,20}(?:AI|人工知能|言語モデル)(?:アシスタント)?(?:です|で、|である|であり)",
        rf"(?:私|わたし|僕)(?:は|の名前は)(?:{names})",
        # Russian
        rf"{STARTS}как (?:ии|искусственный интеллект|(?:большая )?языковая модель){ENDS}",
        r"\bя(?: —| –| -)? (?:всего лишь )?(?:ии\b|искусственный интеллект|(?:большая )?языковая модель|ии-ассистент)",
        rf"\b(?:я(?: —| –| -)?|меня зовут|моё имя) {named}",
        rf"\bменя (?:создал|разработал|обучил)\w* [^.!?,;\n]{{0,20}}{makers}",
    ]


def _own(producers: Iterable[str]) -> tuple[set[str], set[str]]:
    """Names of producers: those that are nobody else's (with a digit or a dash), and words that could be."""
    exact: set[str] = set()
    words: set[str] = set()
    for name in producers:
        for part in {name, name.partition("#")[2], name.rpartition("/")[2], name.partition(":")[2]}:
            plain = part.rpartition("#")[2].strip()
            if len(plain) < 3 or plain.isdigit():
                continue
            distinct = any(mark.isdigit() or mark in "-_/#" for mark in plain)
            (exact if distinct else words).add(re.escape(plain))
            if distinct and (stem := re.match(r"[^\W\d_]{3,}", plain)):
                words.add(re.escape(stem[0]))
    return exact, words


def telling(producers: Iterable[str] = ()) -> re.Pattern[str]:
    """What finds a text in which its writer tells which model it is, in ten languages.

    >>> bool(telling().search("As an AI language model, I cannot.")), bool(telling().search("She is a model citizen."))
    (True, False)
    """
    exact, words = _own(producers)
    every = _patterns("|".join([*NAMES, *sorted(words)]))
    if exact:
        every.append(rf"(?<![\w-])(?:{'|'.join(sorted(exact, key=len, reverse=True))})(?![\w-])")
    return re.compile("|".join(f"(?:{each})" for each in every), re.IGNORECASE)
