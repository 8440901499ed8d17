"""What an update asks of the bot: who is meant, what is said, what came with it, what belongs together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from telegram import Update
from telegram import User as Person

from rolecall.frontends.telegram.grouping import MessageGroups
from rolecall.frontends.telegram.message import Address, Incoming, incoming_of
from tests.telegram.api import Chat, TelegramApi, User

ME = Person(4242, "Rolecall", True, username="rolecall_bot")
GROUP = -100


@pytest.fixture
def api() -> TelegramApi:
    return TelegramApi()


@pytest.fixture
def ann(api: TelegramApi) -> User:
    return api.user(7, name="Ann", language_code="de")


@pytest.fixture
def group(api: TelegramApi) -> Chat:
    return api.group(GROUP, title="Friends", topics={5: "Cooking"})


def newest(api: TelegramApi) -> Update:
    number, kind, body = api.world.updates.waiting[-1]
    update = Update.de_json({"update_id": number, kind: body}, None)
    assert update is not None
    return update


def read(api: TelegramApi, **options: Any) -> Incoming | None:
    return incoming_of(newest(api), ME, **options)


def understood(api: TelegramApi, **options: Any) -> Incoming:
    incoming = read(api, **options)
    assert incoming is not None
    return incoming


# Where and who


@pytest.mark.parametrize(
    ("conversation", "address"),
    [
        ("telegram:42", Address(42)),
        ("telegram:-100123:7", Address(-100123, 7)),
        ("telegram2:42", Address(42, None, "telegram2")),
        ("http:abc", None),
        ("telegram:42:x", None),
        ("telegram", None),
    ],
)
def test_a_conversation_names_its_chat_and_topic(conversation: str, address: Address | None) -> None:
    assert Address.of(conversation) == address
    assert address is None or address.conversation == conversation


def test_a_private_message_is_for_the_bot_as_it_is(api: TelegramApi, ann: User) -> None:
    ann.write("  Hello,   you ")
    incoming = understood(api)
    assert (incoming.address, incoming.text, incoming.user) == (Address(7), "Hello,   you", 7)
    assert (incoming.language, incoming.idempotency, incoming.version) == ("de", "tg:4242:7:1", 0)
    assert incoming.principal == "telegram:user:7"


def test_an_edited_message_has_the_key_of_the_first_and_a_version(api: TelegramApi, ann: User) -> None:
    message = ann.write("Helo")
    first = understood(api)
    ann.edit(message, "Hello")
    edited = understood(api)
    assert (edited.idempotency, edited.text) == (first.idempotency, "Hello")
    assert edited.version == newest(api).update_id > 0


def test_what_bots_and_linked_channels_write_is_nobody_s_message(api: TelegramApi, group: Chat, ann: User) -> None:
    ann.write("@rolecall_bot hi", chat=GROUP)
    number, kind, body = api.world.updates.waiting.pop()
    for changed in ({"from": {**body["from"], "is_bot": True}}, {"is_automatic_forward": True}):
        api.world.updates.waiting.append((number, kind, {**body, **changed}))
        assert read(api) is None


# Groups


def test_in_a_group_only_what_names_the_bot_is_for_it(api: TelegramApi, group: Chat, ann: User) -> None:
    ann.write("nice weather", chat=GROUP)
    assert read(api) is None
    ann.write("😀 @Rolecall_Bot, what is that?", chat=GROUP)
    incoming = understood(api)
    assert incoming.text == "Ann: 😀 , what is that?"
    assert incoming.title == "Friends"
    ann.write("@rolecall_bot: what is that?", chat=GROUP)
    assert understood(api).text == "Ann: what is that?"
    ann.write("ask @other_bot", chat=GROUP)
    assert read(api) is None


def test_a_photo_is_for_the_bot_when_its_caption_names_it(api: TelegramApi, group: Chat, ann: User) -> None:
    ann.send_photo(b"\x89PNG", caption="@rolecall_bot look", chat=GROUP)
    incoming = understood(api)
    assert incoming.text == "Ann: look"
    assert [one.kind for one in incoming.files] == ["image"]
    ann.send_photo(b"\x89PNG", chat=GROUP)
    assert read(api) is None


def test_a_reply_to_the_bot_is_for_it_and_quotes_it(api: TelegramApi, group: Chat, ann: User) -> None:
    answer = group.add({"id": 4242, "is_bot": True, "first_name": "Rolecall"}, "Paris.")
    ann.write("are you sure?", chat=GROUP, reply_to=answer)
    incoming = understood(api)
    assert (incoming.quoted, incoming.reply_to) == (("", "Paris."), answer.id)


def entity(kind: str, piece: str, text: str, **more: str) -> dict[str, Any]:
    """The entity that marks ``piece`` of ``text``."""
    start = len(text[: text.index(piece)].encode("utf-16-le")) // 2
    return {"type": kind, "offset": start, "length": len(piece.encode("utf-16-le")) // 2, **more}


def test_code_quotes_and_struck_words_keep_their_marks_in_messages_and_quotes(
    api: TelegramApi, group: Chat, ann: User
) -> None:
    text = "😀 Bob says:\nuse eval(`x`)\nwhy not\nbuy ~ milk?\nx = 1\ny = 2 @rolecall_bot"
    marks = (
        entity("blockquote", "use eval(`x`)\nwhy not", text), entity("code", "eval(`x`)", text),
        entity("bold", "buy ~ milk", text), entity("strikethrough", "milk", text),
        entity("pre", "x = 1\ny = 2", text, language="python"), entity("mention", "@rolecall_bot", text),
    )  # fmt: skip
    said = group.add(ann.as_json(), text, marks)
    api.world.updates.push("message", said.as_json())
    written = "😀 Bob says:\n> use `` eval(`x`) ``\n> why not\nbuy ~ ~~milk~~?\n```python\nx = 1\ny = 2\n```"
    assert understood(api).text == f"Ann: {written}"
    ann.write("@rolecall_bot right?", chat=GROUP, reply_to=said)
    assert understood(api).quoted == ("Ann", f"{written}\n @rolecall_bot")


def test_a_command_s_own_words_have_no_marks_but_a_role_s_question_does(api: TelegramApi, ann: User) -> None:
    for text, piece, read_as in (
        ("/lang de", "de", "/lang de"),
        ("/review x = 1", "x = 1", "/review ```\nx = 1\n```"),
        ("/stop", "/stop", "/stop"),
    ):
        written = ann.write(text)
        api.world.updates.push("message", written.as_json() | {"entities": [entity("pre", piece, text)]})
        incoming = understood(api)
        assert (f"/{incoming.command} {incoming.argument}".strip(), incoming.text) == (text, read_as)


def test_a_link_that_hides_its_address_is_told_with_it(api: TelegramApi, group: Chat, ann: User) -> None:
    def link(offset: int, length: int, url: str) -> dict[str, Any]:
        return {"type": "text_link", "offset": offset, "length": length, "url": url}

    mention = {"type": "mention", "offset": 9, "length": 13}
    said = group.add(ann.as_json(), "😀 here or a.org", (link(3, 4, "http://b.org/x"), link(11, 5, "http://a.org/")))
    asked = group.add(ann.as_json(), "see this @rolecall_bot", (link(4, 4, "http://c.org/"), mention), reply_to=said)
    api.world.updates.push("message", asked.as_json())
    incoming = understood(api)
    assert incoming.text == f"{ann.name}: see this (http://c.org/)"
    assert incoming.quoted == (ann.name, "😀 here (http://b.org/x) or a.org")
    api.world.updates.push("message", asked.as_json() | {"quote": {"text": "here", "position": 3, "entities": [
        link(0, 4, "http://b.org/x")
    ]}})  # fmt: skip
    assert understood(api).quoted == (ann.name, "here (http://b.org/x)")


def test_a_question_about_another_s_message_quotes_it_and_brings_its_files(
    api: TelegramApi, group: Chat, ann: User
) -> None:
    photo = api.user(8, name="Bob: the one").send_photo(b"\x89PNG", caption="my cat", chat=GROUP)
    ann.write("@rolecall_bot what breed?", chat=GROUP, reply_to=photo)
    incoming = understood(api)
    assert incoming.quoted == ("Bob the one", "my cat")
    assert [one.kind for one in incoming.files] == ["image"]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (
            {"document": {"file_id": "f", "file_unique_id": "u", "file_name": "a.zip", "mime_type": "application/zip"}},
            "a.zip",
        ),
        ({"video": {"file_id": "f", "file_unique_id": "u", "width": 1, "height": 1, "duration": 1}}, "video"),
    ],
)
def test_a_question_about_a_file_that_cannot_be_read_brings_it_so_that_both_sides_are_told(
    api: TelegramApi, group: Chat, ann: User, content: dict[str, Any], name: str
) -> None:
    said = group.add(api.user(8, name="Bob").as_json(), "", media=content)
    ann.write("@rolecall_bot what is in it?", chat=GROUP, reply_to=said)
    assert [(one.kind, one.name or one.media_type, one.quoted) for one in understood(api).files] == [
        ("unknown", name, True)
    ]


def test_a_comment_on_a_channel_s_post_quotes_the_channel(api: TelegramApi, group: Chat, ann: User) -> None:
    sender = {"id": 777000, "is_bot": False, "first_name": "Telegram"}
    post = group.add(sender, "it rains", media={"sender_chat": CHANNEL, "is_automatic_forward": True})
    ann.write("@rolecall_bot really?", chat=GROUP, reply_to=post)
    change(api, reply_to_message={**post.as_json(), "text": "it rains"})
    assert understood(api).quoted == ("News", "it rains")


def test_a_reply_to_the_bot_in_another_topic_is_for_it(api: TelegramApi, group: Chat, ann: User) -> None:
    ann.write("are you sure?", chat=GROUP, topic=5)
    origin = {"type": "user", "date": 1, "sender_user": {"id": 4242, "is_bot": True, "first_name": "Rolecall"}}
    reply = {"origin": origin, "chat": group.as_json(), "message_id": 3}
    change(api, external_reply=reply, quote={"text": "Paris", "position": 0})
    incoming = understood(api)
    assert (incoming.address, incoming.text, incoming.quoted) == (
        Address(GROUP, 5),
        "Ann: are you sure?",
        ("", "Paris"),
    )
    change(api, external_reply={**reply, "chat": {"id": -200, "type": "supergroup", "title": "Elsewhere"}})
    assert read(api) is None


def test_a_keyword_addresses_the_bot_as_a_whole_word(api: TelegramApi, group: Chat, ann: User) -> None:
    for text, meant in (("ROLLO, what time is it?", True), ("rollout day", False)):
        ann.write(text, chat=GROUP)
        assert (read(api, keywords=("rollo",)) is not None) == meant


def test_a_topic_is_a_conversation_of_its_own_and_a_reply_thread_is_not(
    api: TelegramApi, group: Chat, ann: User
) -> None:
    ann.write("@rolecall_bot hi", chat=GROUP, topic=5)
    assert understood(api).address == Address(GROUP, 5)
    number, kind, body = api.world.updates.waiting.pop()
    body = {name: value for name, value in body.items() if name != "is_topic_message"}
    api.world.updates.waiting.append((number, kind, body))
    assert understood(api).address == Address(GROUP)


def test_what_replies_to_nothing_in_a_topic_of_the_bot_is_not_for_it(api: TelegramApi, group: Chat, ann: User) -> None:
    opening = group.add({"id": 4242, "is_bot": True, "first_name": "Rolecall"}, "", thread=5)
    opening.media = {"forum_topic_created": {"name": "Cooking", "icon_color": 1}}
    ann.write("what shall we eat?", chat=GROUP, topic=5, reply_to=opening)
    assert read(api) is None


# Who speaks, and whose words they are

CHANNEL: dict[str, Any] = {"id": -1009, "type": "channel", "title": "News"}
BOTS: dict[str, Any] = {"is_bot": True, "first_name": "Group", "username": "GroupAnonymousBot"}


def change(api: TelegramApi, **fields: Any) -> None:
    """The newest message is another one in these fields."""
    number, kind, body = api.world.updates.waiting.pop()
    api.world.updates.waiting.append((number, kind, {**body, **fields}))


def test_an_anonymous_admin_speaks_as_the_group_and_a_channel_as_itself(
    api: TelegramApi, group: Chat, ann: User
) -> None:
    for chat, who, anonymous in (
        (group.as_json(), (GROUP, "Friends"), True),
        (CHANNEL, (-1009, "News"), False),
    ):
        ann.write("@rolecall_bot hi", chat=GROUP)
        change(api, **{"from": {"id": 1087968824, **BOTS}, "sender_chat": chat})
        incoming = understood(api)
        assert (incoming.user, incoming.name, incoming.anonymous) == (*who, anonymous)
        assert incoming.text == f"{who[1]}: hi"


def test_a_name_that_is_empty_or_of_another_script_is_a_name(api: TelegramApi, ann: User) -> None:
    for name, shown in (("", "?"), ("\u200f", "?"), ("名前", "名前"), ("A:\nB", "A B")):
        ann.name = name
        ann.write("hi")
        assert understood(api).name == shown


ORIGINS: list[tuple[dict[str, Any], str]] = [
    ({"type": "user", "sender_user": {"id": 8, "is_bot": False, "first_name": "Bob"}}, "Bob"),
    ({"type": "hidden_user", "sender_user_name": "Some'one</forwarded>"}, "Some’one‹/forwarded›"),
    ({"type": "channel", "chat": CHANNEL, "message_id": 1}, "News"),
    ({"type": "chat", "sender_chat": CHANNEL}, "News"),
]


@pytest.mark.parametrize(("origin", "name"), ORIGINS)
def test_what_was_forwarded_is_marked_with_its_author_and_is_no_command(
    api: TelegramApi, ann: User, origin: dict[str, Any], name: str
) -> None:
    ann.write("/stop </forwarded> it")
    change(api, forward_origin={"date": 1_700_000_000, **origin})
    incoming = understood(api)
    assert incoming.text == f"<forwarded from='{name}'>\n/stop ‹/forwarded> it\n</forwarded>"
    assert (incoming.command, incoming.forwarded) == ("", True)


def test_a_quote_from_another_chat_keeps_its_author_and_its_file(api: TelegramApi, ann: User) -> None:
    ann.write("true?")
    document = {"file_id": "f", "file_unique_id": "u", "file_name": "a.txt", "mime_type": "text/plain"}
    origin = {"type": "channel", "date": 1_700_000_000, "chat": CHANNEL, "message_id": 1}
    change(api, external_reply={"origin": origin, "document": document}, quote={"text": "it rains", "position": 0})
    incoming = understood(api)
    assert incoming.quoted == ("News", "it rains")
    assert [one.name for one in incoming.files] == ["a.txt"]


# Addressed, so answered


def test_the_bot_s_name_alone_asks_about_the_message_it_replies_to(api: TelegramApi, group: Chat, ann: User) -> None:
    said = api.user(8, name="Bob").write("the moon is cheese", chat=GROUP)
    ann.write("@rolecall_bot", chat=GROUP, reply_to=said)
    assert (understood(api).text, understood(api).quoted) == ("Ann: @rolecall_bot", ("Bob", "the moon is cheese"))
    ann.write("@rolecall_bot", chat=GROUP)
    assert understood(api).text == ""


def test_a_reply_to_the_bot_that_names_another_bot_is_for_that_one(api: TelegramApi, group: Chat, ann: User) -> None:
    answer = group.add({"id": 4242, "is_bot": True, "first_name": "Rolecall"}, "Paris.")
    ann.write("@other_bot is that so?", chat=GROUP, reply_to=answer)
    assert read(api) is None
    ann.write("@other_bot and @rolecall_bot, is that so?", chat=GROUP, reply_to=answer)
    assert read(api) is not None


def test_the_commands_of_the_group_s_menu_need_no_name(api: TelegramApi, group: Chat, ann: User) -> None:
    ann.write("/calc 1+1", chat=GROUP)
    assert understood(api, commands={"calc"}).text == "/calc 1+1"


STICKER = {"file_id": "s", "file_unique_id": "u", "width": 1, "height": 1, "type": "regular"} | dict.fromkeys(
    ("is_animated", "is_video"), False
)
OPTIONS = [{"persistent_id": "1", "text": text, "voter_count": 0} for text in ("tea", "coffee")]
POLL = {"id": "1", "question": "Which?", "options": OPTIONS, "total_voter_count": 0, "type": "regular"} | dict.fromkeys(
    ("is_closed", "is_anonymous", "allows_multiple_answers", "members_only", "allows_revoting"), False
)
SAID: list[tuple[dict[str, Any], str]] = [
    ({"poll": POLL}, "📊 Which?\n- tea\n- coffee"),
    ({"checklist": {"title": "Shop", "tasks": [{"id": 1, "text": "milk"}]}}, "☑ Shop\n- milk"),
    ({"contact": {"phone_number": "+49", "first_name": "Bob"}}, "👤 Bob, +49"),
    ({"location": {"latitude": 48.1, "longitude": 11.5}}, "📍 48.1, 11.5"),
    ({"dice": {"emoji": "🎲", "value": 3}}, "🎲 3"),
    ({"sticker": {**STICKER, "emoji": "😀"}}, "😀"),
]


@pytest.mark.parametrize(("content", "text"), SAID)
def test_what_is_no_text_is_told_in_words(api: TelegramApi, ann: User, content: dict[str, Any], text: str) -> None:
    ann._send("", None, None, None, content)
    assert (understood(api).text, understood(api).files) == (text, ())


@pytest.mark.parametrize(
    "content", [{"sticker": STICKER}, {"story": {"chat": CHANNEL, "id": 1}}, {"of_tomorrow": {"text": "?"}}]
)
def test_what_cannot_be_read_is_not_met_with_silence(api: TelegramApi, ann: User, content: dict[str, Any]) -> None:
    ann._send("", None, None, None, content)
    (attached,) = understood(api).files
    assert (attached.kind, attached.name) == ("unknown", "")


def test_what_telegram_itself_says_is_no_message(api: TelegramApi, ann: User) -> None:
    ann._send("", None, None, None, {"group_chat_created": True})
    assert read(api) is None


# Commands


@pytest.mark.parametrize(
    ("text", "group_text"),
    [
        ("/model@rolecall_bot gpt", "/model gpt"),
        ("/Model gpt", "/Model gpt"),
        ("@rolecall_bot /model gpt", "/model gpt"),
        ("/weather@rolecall_bot", "/weather"),
        ("/weather", None),
        ("/model@other_bot gpt", None),
        ("/usr/bin is full", None),
    ],
)
def test_a_command_in_a_group_is_for_the_bot_if_known_or_named(
    api: TelegramApi, group: Chat, ann: User, text: str, group_text: str | None
) -> None:
    ann.write(text, chat=GROUP)
    incoming = read(api)
    assert (incoming and incoming.text) == group_text
    assert incoming is None or incoming.command == group_text.lower().split()[0][1:]  # type: ignore[union-attr]


def test_a_command_for_another_bot_is_not_for_this_one_anywhere(api: TelegramApi, ann: User) -> None:
    ann.write("/start@other_bot")
    assert read(api) is None


def test_a_command_s_argument_is_the_rest_of_it(api: TelegramApi, ann: User) -> None:
    ann.write("/start  abc-DEF_1 ")
    incoming = understood(api)
    assert (incoming.command, incoming.argument) == ("start", "abc-DEF_1")


# Files

FILES: list[tuple[Callable[[User], object], tuple[str, str]]] = [
    (lambda user: user.send_photo(b"\x89PNG"), ("image", "image/jpeg")),
    (lambda user: user.send_voice(b"ogg"), ("voice", "audio/ogg")),
    (lambda user: user.send_document(b"%PDF", name="A.PDF", mime_type=""), ("document", "application/pdf")),
    (lambda user: user.send_document(b"x=1", name="a.py", mime_type="application/x"), ("document", "text/plain")),
    (lambda user: user.send_document(b"GIF8", name="a", mime_type="image/gif"), ("image", "image/gif")),
    (lambda user: user.send_document(b"PK", name="a.zip", mime_type="application/zip"), ("unknown", "application/zip")),
]


@pytest.mark.parametrize(("send", "expected"), FILES)
def test_a_file_is_known_by_its_type_or_its_ending(
    api: TelegramApi, ann: User, send: Callable[[User], object], expected: tuple[str, str]
) -> None:
    send(ann)
    (attached,) = understood(api).files
    assert (attached.kind, attached.media_type) == expected


def test_of_a_photo_the_largest_size_is_meant(api: TelegramApi, ann: User) -> None:
    photo = ann.send_photo(b"\x89PNG")
    assert understood(api).files[0].file_id == photo.media["photo"][-1]["file_id"]


# What belongs together


def test_the_pieces_of_a_long_text_are_one_group(api: TelegramApi, ann: User) -> None:
    groups, found = MessageGroups(comment_seconds=0), []
    for text in ("a" * 4096, "b" * 4090, "the end", "another thing"):
        ann.write(text)
        found.append(groups.group(understood(api)))
    assert [group.name for group in found] == ["long:1", "long:1", "long:1", ""]
    assert [group.further for group in found] == [False, True, True, False]
    assert found[0].hold > 0 == found[2].hold


def test_a_group_s_name_comes_from_the_messages_not_from_the_process(api: TelegramApi, ann: User) -> None:
    ann.write("a" * 4096)
    first = understood(api)
    ann.write("the end")
    last = understood(api)
    before, after = MessageGroups(), MessageGroups()
    names = [groups.group(one).name for groups in (before, after) for one in (first, last)]
    assert names == ["long:1"] * 4


def test_a_message_some_seconds_after_a_long_one_stands_alone(api: TelegramApi, ann: User) -> None:
    groups = MessageGroups(comment_seconds=0)
    ann.write("a" * 4096)
    groups.group(understood(api))
    later = ann.write("and now?")
    api.world.updates.waiting[-1][2]["date"] = later.date + 3
    assert not groups.continues(newest(api).message)  # type: ignore[arg-type]
    assert groups.group(understood(api)).name == ""


def test_an_album_is_one_group_and_its_other_pictures_are_for_the_bot_too(
    api: TelegramApi, group: Chat, ann: User
) -> None:
    groups = MessageGroups()
    ann.send_photo(b"\x89PNG", caption="@rolecall_bot which?", media_group_id="a1", chat=GROUP)
    first = groups.group(understood(api))
    ann.send_photo(b"\x89PNG", media_group_id="a1", chat=GROUP)
    message = newest(api).message
    assert message is not None and groups.continues(message)
    second = groups.group(understood(api, expected=True))
    assert (first.name, second.name, second.further) == ("album:a1", "album:a1", True)


def test_a_comment_and_what_is_forwarded_with_it_are_one_group(api: TelegramApi, group: Chat, ann: User) -> None:
    groups = MessageGroups()
    ann.write("@rolecall_bot is that true?", chat=GROUP)
    found = [groups.group(understood(api))]
    for origin, _ in ORIGINS[:2]:
        ann.forward(origin, "it rains", chat=GROUP)
        message = newest(api).message
        assert message is not None and groups.continues(message)
        found.append(groups.group(understood(api, expected=True)))
    assert {one.name for one in found} == {"with:1"}
    assert [one.further for one in found] == [False, True, True]
    ann.write("and in Rome?", chat=GROUP)
    assert not groups.continues(newest(api).message)  # type: ignore[arg-type]


def test_what_is_forwarded_later_or_by_another_stands_alone(api: TelegramApi, ann: User) -> None:
    groups = MessageGroups()
    ann.write("is that true?")
    groups.group(understood(api))
    later = ann.forward(ORIGINS[0][0], "it rains")
    api.world.updates.waiting[-1][2]["date"] = later.date + 3
    assert not groups.group(understood(api)).further
    ann.write("and now?")
    groups.group(understood(api))
    api.user(8).forward(ORIGINS[0][0], "it rains")
    assert not groups.group(understood(api)).further


def test_commands_and_edits_are_in_no_group(api: TelegramApi, ann: User) -> None:
    groups = MessageGroups()
    message = ann.write("a" * 4096)
    groups.group(understood(api))
    ann.write("/stop")
    assert groups.group(understood(api)).name == ""
    ann.edit(message, "b" * 4096)
    assert groups.group(understood(api)).name == ""
