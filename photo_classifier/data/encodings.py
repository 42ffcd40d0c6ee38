"""Guesses the encoding of text that does not name it, by how plausible the letters are that each encoding gives."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

# The letters beyond ASCII of each language, by the code page in which Windows writes it.
WESTERN = "äöüß éèêëàâçîïôûùüœæ áéíóúñü áâãàçéêíóôõú åäöæøé àèéìíòóù áðéíóúýþæö äöüõ".split()
EASTERN = "ąćęłńóśźż áčďéěíňóřšťúůýž áäčďéíĺľňóôŕšťúýž áéíóöőúüű ăâîşţ čćđšž".split()
# from here on the most frequent ones first
CYRILLIC = "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъё оаніивретслкумдпязьбгчйхжшєюцщїф".split()
LETTERS = {
    "cp1252": WESTERN,
    "cp1250": EASTERN,
    "cp1251": CYRILLIC,
    "cp1253": ["αοιετσνηρςυκλπμάίόέγωδθήχφώβύξζψϊϋ"],
    "cp1254": ["çğıöşüâİ"],
    "cp1255": ["יוהלאתרמבשנםחדקפעכטגסזןצךףץ"],
    "cp1256": ["الينمترويبةعدسفهكقحجشطأصخضىإذئثغزءظؤآ"],
    "cp1257": ["āčēģīķļņšūž", "ąčęėįšųūž"],
    "koi8_r": CYRILLIC[:1],
    "cp874": ["านรอกเงมยลวดทสตะ่ปบค้ีัิแจพหใ็ไุูโชขึื์ถผศซณภฟธฉญำษฐฎฝฮ๊ฏฆฒฬ๋ฑฌฤๆ"],
    "mac_roman": WESTERN,
}
DOS_LETTERS = {"cp437": WESTERN, "cp850": WESTERN, "cp852": EASTERN, "cp866": CYRILLIC[:1]}  # names in old zip files
RARE = ("koi8_r", "cp874", "mac_roman")
SYMBOLS = "°’‘“”„–—…€²³µªº±×§®©™«»´½·"
# Half of all syllables in Korean text are among these; other text read as Korean rarely has them.
KOREAN = (
    "가각간갈감강갖같개거건걸검것게격견결경계고곡곰공과관광교구국군굴권귀균그극근금급기긴길김깨꼬꽃끼나난날남내냉너노녹논농누눈뉴느"
    "는늘능니다단달닭담당대더덕던데도독돈돌동돼되두둑드든들등디따딸땅때또라락란람랑래량러런럼레려력련령로록론료루류륜르를름리린림립마"
    "막만말망매맥머먼메며면명모목몽무묵문물미민밀바박반발밤방배백버번벌범법벼벽변별병보복본봄봉부북분불붉블비빈빛빨뿌사산살삼상새색생서"
    "석선설섬성세소속손솔송쇠수숙순술숭스슬습승시식신실심싱싸쌀쓰아악안알암압애앵야약양어억언얼업없에여역연열염영예오옥온올옷와완왕외요"
    "용우운울움웅원월위유육율으은을음응의이익인일임입자작잔잠장재저적전절점접정제조족종좋주죽준중쥐즈증지직진질집짜차착찬참창채책처척천"
    "철첫청체초촉총추축출충취치칙친침카커컴코콩크큰키타탁탄태택터테토통투트특틀티파판팔팥패퍼펜편평포폭표품풍프피필하학한할함합항해행향"
    "허험현형호혹홍화확환활황회획효후훈휘휴흑흙희흰히힘라벨파일명분류경로"
)


def encoding_of(raw: bytes, letters: dict[str, list[str]] = LETTERS) -> str | None:
    """Returns the name of the encoding of a text, or None if it is none.

    UTF-8, and UTF-16 with a byte order mark or ASCII in it, are certain. Anything else is a guess from the words
    with bytes beyond ASCII: the share of their letters that a language of the encoding uses.

    Args:
        letters: the code pages of one byte a letter, with the alphabets that they are for.
    """
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    n_even, n_odd = (raw[start:1000:2].count(0) for start in (0, 1))  # the upper half of each ASCII letter in UTF-16
    if 8 * max(n_even, n_odd) > min(len(raw), 1000) and not n_odd / 2 < n_even < 2 * n_odd:
        return "utf-16-le" if n_odd > n_even else "utf-16-be"
    if _decodes(raw, "utf-8"):
        return "utf-8-sig"
    if b"\0" in raw:
        return None
    scores = _scores(b" ".join(_foreign_words(raw)), letters)
    return max(scores, key=scores.__getitem__, default=None)


def _decodes(raw: bytes, encoding: str) -> bool:
    try:
        raw.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _foreign_words(raw: bytes) -> list[bytes]:
    """Returns the first 2,000 different words with a byte beyond ASCII."""
    found: dict[bytes, None] = {}
    for match in re.finditer(rb"[^\s,;|\"/]*[\x80-\xff][^\s,;|\"/]*", raw):
        found[match[0]] = None
        if len(found) == 2000:
            break
    return list(found)


def _scores(raw: bytes, letters: dict[str, list[str]]) -> dict[str, float]:
    """Returns encoding -> the mean plausibility of its letters; of equal ones the first is the best."""
    scores = {}
    for encoding in ("cp949", *letters, "cp932", "gb18030", "cp950", "euc_jp"):
        if _decodes(raw, encoding):
            words = re.findall(r"\S+", raw.decode(encoding))
            if encoding in letters:
                best = max(_mean(_of_alphabet(words, alphabet)) for alphabet in letters[encoding])
                scores[encoding] = best * (0.85 if encoding in RARE else 1.0)
            else:
                scores[encoding] = _mean(_of_east_asia(words, encoding))
    return scores


def _mean(values: Iterator[float]) -> float:
    found = list(values)
    return sum(found) / max(1, len(found))


WORD = re.compile("(?:[^\\W\\d_]|[\u0e31-\u0e4e])+|\\W")  # the vowels of Thai are marks


def _of_alphabet(words: list[str], alphabet: str) -> Iterator[float]:
    """Yields how plausible each letter and symbol is in a language with this alphabet."""
    is_latin = bool(set(alphabet) & set("éóöäüč"))
    for part in (part for word in words for part in WORD.findall(word) if not part.isascii()):
        trust = _trust(part, is_latin)
        for letter in part:
            if letter in SYMBOLS:
                yield 0.95
            elif not letter.isascii():
                rank = max(alphabet.find(letter), alphabet.find(letter.lower()))
                yield 0.0 if rank < 0 else trust if is_latin else trust * (1 - 0.05 * rank / len(alphabet))


def _trust(word: str, is_latin: bool) -> float:
    """Returns 1 for a word in one script with usual capitals, 0 for another."""
    if word not in (word.lower(), word.upper(), word.capitalize()) or (not is_latin and re.search("[A-Za-z]", word)):
        return 0.0
    if len(word) == 1:  # rather a symbol, as in `2×2`
        return 0.94 if is_latin else 0.85
    return 0.88 if not is_latin and word.isupper() else 1.0  # a chance result of other scripts


def _of_east_asia(words: list[str], encoding: str) -> Iterator[float]:
    """Yields how usual each letter is: rare ones and those amid Latin letters are Western text read wrongly."""
    for word in words:
        for n, letter in enumerate(word):
            if not letter.isascii():
                is_amid = any(near.isascii() and near.isalpha() for near in word[max(0, n - 1) : n + 2])
                yield _usual(letter, encoding) * (0.4 if is_amid else 1.0)


def _usual(letter: str, encoding: str) -> float:
    if encoding == "cp949":
        is_old = "가" <= letter <= "힣" and letter.encode("euc_kr", "ignore")  # among the 2,350 syllables of KS X 1001
        return 1.0 if letter in KOREAN else 0.6 if is_old else 0.1
    if encoding in ("cp932", "euc_jp") and "ぁ" <= letter <= "ヾ":
        return 1.0
    first, *_, last = letter.encode(encoding) * 2
    is_frequent = first in LEVEL_1[encoding] and (encoding != "gb18030" or last >= 0xA1)
    return 0.9 if is_frequent else 0.85 if "ｦ" <= letter <= "ﾟ" else 0.2


# the first bytes of the characters that each standard calls frequent
LEVEL_1 = {
    "cp932": range(0x88, 0x98),
    "euc_jp": range(0xB0, 0xD0),
    "gb18030": range(0xB0, 0xD8),
    "cp950": range(0xA4, 0xC7),
}
