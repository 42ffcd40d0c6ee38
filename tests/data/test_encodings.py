import pytest

from photo_classifier.data.encodings import encoding_of

# class names as tables in each encoding have them
NAMES = {
    "utf-8": ["Käfer", "고양이", "猫"],
    "utf-8-sig": ["cat", "dog"],
    "utf-16": ["Käfer", "고양이"],
    "utf-16-le": ["Käfer", "dog"],
    "utf-16-be": ["Käfer", "dog"],
    "cp1252": ["Käfer|Grevy’s zebra", "Grevy’s zebra|cat", "épagneul|âne", "pájaro|león", "cão|leão|coração",
               "björn|räv|ål", "KÄFER|BÄR", "Größe|süß", "ARAÑA|LEÓN", "þröstur|æður", "20°C|30°C", "Mücke",
               "5 µm|10 µm", "5µm|20µm", "2×2|3×3", "1º|2ª"],
    "cp1250": ["żółw|kot|łoś", "kočka|kůň|želva", "őz|tücsök|fűrész|nyúl"],
    "cp1251": ["кошка|собака", "Кошка|Лошадь", "КОШКА|СОБАКА", "кіт|їжак"],
    "cp1253": ["γάτα|σκύλος", "κόκκινο|μπλε"],
    "cp1255": ["חתול|כלב"],
    "cp874": ["แดง|น้ำเงิน"],
    "koi8_r": ["Красный|Синий"],
    "mac_roman": ["Käfer|Grün"],
    "cp1254": ["köpek|kuş|ağaç|ışık"],
    "cp949": ["고양이|개", "정상|불량", "강아지|고양이|사람", "사과|배|포도"],
    "cp932": ["猫|犬", "ネコ|イヌ", "ねこ|いぬ", "正常|異常"],
    "gb18030": ["猫|狗", "正常|异常", "苹果|香蕉|葡萄", "文件名|猫|狗"],
    "cp950": ["貓|狗", "正常|異常", "蘋果|香蕉|葡萄"],
}  # fmt: skip


@pytest.mark.parametrize(("encoding", "names"), [(encoding, text) for encoding in NAMES for text in NAMES[encoding]])
def test_the_encoding_of_a_table_is_guessed_from_a_few_names(encoding, names):
    text = "file;label\n" + "\n".join(f"p{n}.jpg;{name}" for n, name in enumerate(names.split("|") * 3))
    raw = text.encode(encoding)
    assert raw.decode(encoding_of(raw)) == text


def test_what_is_no_text_has_no_encoding():
    assert encoding_of(b"\x00\x80\xff\x00" * 100) is None
    assert (
        encoding_of(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x30\0\0\0\x28\x08\x02\0\0\0" + bytes(range(256)) * 9) is None
    )
