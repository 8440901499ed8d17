"""The languages that this assistant understands and answers in."""

from collections.abc import Mapping
from types import MappingProxyType

from rolecall import Language

LANGUAGES: Mapping[str, str] = MappingProxyType(
    {
        "ar": "Arabic",
        "bg": "Bulgarian",
        "cs": "Czech",
        "da": "Danish",
        "de": "German",
        "el": "Greek",
        "en": "English",
        "es": "Spanish",
        "fi": "Finnish",
        "fr": "French",
        "he": "Hebrew",
        "hi": "Hindi",
        "hu": "Hungarian",
        "id": "Indonesian",
        "it": "Italian",
        "ja": "Japanese",
        "ko": "Korean",
        "nl": "Dutch",
        "no": "Norwegian",
        "pl": "Polish",
        "pt": "Portuguese",
        "ro": "Romanian",
        "ru": "Russian",
        "sv": "Swedish",
        "th": "Thai",
        "tr": "Turkish",
        "uk": "Ukrainian",
        "vi": "Vietnamese",
        "zh": "Chinese",
    }
)
"""The name of each language in prompts."""
OFFERED: Mapping[str, Language] = MappingProxyType(
    {
        "ar": Language("العربية", "سأجيب بالعربية من الآن فصاعدًا."),
        "bg": Language("Български", "Отсега нататък ще отговарям на български."),
        "cs": Language("Čeština", "Od teď budu odpovídat česky."),
        "da": Language("Dansk", "Fra nu af svarer jeg på dansk."),
        "de": Language("Deutsch", "Ich antworte ab jetzt auf Deutsch."),
        "el": Language("Ελληνικά", "Από εδώ και πέρα θα απαντώ στα ελληνικά."),
        "en": Language("English", "From now on, I'll answer in English."),
        "es": Language("Español", "A partir de ahora responderé en español."),
        "fi": Language("Suomi", "Tästä lähtien vastaan suomeksi."),
        "fr": Language("Français", "Je répondrai désormais en français."),
        "he": Language("עברית", "מעכשיו אענה בעברית."),
        "hi": Language("हिन्दी", "अब से मैं हिन्दी में जवाब दूँगा।"),
        "hu": Language("Magyar", "Mostantól magyarul válaszolok."),
        "id": Language("Bahasa Indonesia", "Mulai sekarang saya menjawab dalam bahasa Indonesia."),
        "it": Language("Italiano", "D'ora in poi risponderò in italiano."),
        "ja": Language("日本語", "これからは日本語で回答します。"),
        "ko": Language("한국어", "이제부터 한국어로 답변하겠습니다."),
        "nl": Language("Nederlands", "Vanaf nu antwoord ik in het Nederlands."),
        "no": Language("Norsk", "Fra nå av svarer jeg på norsk."),
        "pl": Language("Polski", "Od teraz będę odpowiadać po polsku."),
        "pt": Language("Português", "A partir de agora responderei em português."),
        "ro": Language("Română", "De acum înainte voi răspunde în română."),
        "ru": Language("Русский", "Теперь я буду отвечать по-русски."),
        "sv": Language("Svenska", "Från och med nu svarar jag på svenska."),
        "th": Language("ไทย", "จากนี้ไปจะตอบเป็นภาษาไทย"),
        "tr": Language("Türkçe", "Bundan sonra Türkçe yanıt vereceğim."),
        "uk": Language("Українська", "Відтепер відповідатиму українською."),
        "vi": Language("Tiếng Việt", "Từ giờ tôi sẽ trả lời bằng tiếng Việt."),
        "zh": Language("中文", "从现在起我会用中文回答。"),
    }
)
"""What ``/lang`` offers: each language's own name, and the sentence that confirms the choice."""


def language_name(code: str) -> str:
    """The language's own name; the code if it is not offered."""
    return OFFERED[code].name if code in OFFERED else code


def chosen_code(said: str) -> str:
    """The code of the language that ``said`` names: a number of the list, a code or a name; "" if there is none."""
    wanted, codes = said.strip().casefold(), list(OFFERED)
    if wanted.isascii() and wanted.isdigit():
        return codes[int(wanted) - 1] if 0 < int(wanted) <= len(codes) else ""
    return next(
        (code for code in codes if wanted in (code, LANGUAGES[code].lower(), OFFERED[code].name.casefold())), ""
    )
