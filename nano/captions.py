"""Captions of scenes in English or Chinese, in several wordings each. The module does not know images."""

from random import Random
from typing import Literal

from nano.scenes import COLOURS, SHAPES, Background, Scene, Thing

Language = Literal["en", "zh"]

ZH_COLOURS = dict(
    zip(COLOURS, ("红色", "橙色", "黄色", "绿色", "青色", "蓝色", "紫色", "粉色", "白色", "黑色"), strict=True)
)
ZH_SHAPES = dict(zip(SHAPES, ("圆形", "正方形", "三角形", "星星", "圆环", "菱形", "十字", "爱心"), strict=True))
ZH_SIZES = {"small": "小", "large": "大"}
EN_CELLS = {
    "top left": "in the top left corner",
    "top": "at the top",
    "top right": "in the top right corner",
    "left": "on the left",
    "centre": "in the centre",
    "right": "on the right",
    "bottom left": "in the bottom left corner",
    "bottom": "at the bottom",
    "bottom right": "in the bottom right corner",
}
ZH_CELLS = dict(
    zip(EN_CELLS, ("左上角", "上方", "右上角", "左边", "中间", "右边", "左下角", "下方", "右下角"), strict=True)
)
EN_RELATIONS = {"left of": ("to the left of", "to the right of"), "above": ("above", "below")}
ZH_RELATIONS = {"left of": ("左边", "右边"), "above": ("上方", "下方")}


def caption(scene: Scene, language: Language, rng: Random) -> str:
    """Return a caption in a random wording. Every wording states all facts of the scene and no others."""
    return _english(scene, rng) if language == "en" else _chinese(scene, rng)


def vocabulary() -> list[str]:
    """Return every word as it appears in captions, from which the tokenizer learns its merges."""
    english = {word for table in (COLOURS, SHAPES) for word in table} | {"small", "large", "background", "picture"}
    english |= {word for phrase in EN_CELLS.values() for word in phrase.split()}
    english |= {"a", "an", "and", "of", "below", "above", "fading", "from", "to", "there", "is"}
    chinese = [*ZH_COLOURS.values(), *ZH_SHAPES.values(), *ZH_CELLS.values(), *ZH_SIZES.values()]
    chinese += ["背景上", "背景", "有一个", "一个", "渐变到", "从上到下", "从左到右", "一张图"]
    chinese += ["和", "的", "在", "由", ",", "，"]
    return [*sorted(english), *(f" {word}" for word in sorted(english)), *chinese]


def _english(scene: Scene, rng: Random) -> str:
    subject = _english_subject(scene, rng)
    if scene.background is None:
        return rng.choice((f"{subject}", f"a picture of {subject}", f"there is {subject}"))
    behind = _english_background(scene.background)
    return rng.choice((f"{subject} {behind}", f"{subject}, {behind}", f"{behind}, {subject}", f"{behind}: {subject}"))


def _english_subject(scene: Scene, rng: Random) -> str:
    first, *rest = [_english_thing(thing) for thing in scene.things]
    if not rest:
        return first if scene.place is None else f"{first} {EN_CELLS[scene.place]}"
    second = rest[0]
    if scene.place is None:
        return f"{first} and {second}"
    forth, back = EN_RELATIONS[scene.place]
    return rng.choice((f"{first} {forth} {second}", f"{second} {back} {first}"))


def _english_thing(thing: Thing) -> str:
    words = " ".join(word for word in (thing.size, thing.colour, thing.shape) if word)
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _english_background(background: Background) -> str:
    if background.plain:
        return f"on {'an' if background.start == 'orange' else 'a'} {background.start} background"
    direction = "top to bottom" if background.downwards else "left to right"
    return f"on a background fading {direction} from {background.start} to {background.end}"


def _chinese(scene: Scene, rng: Random) -> str:
    comma = rng.choice("，,")  # Chinese typists use either
    if scene.background is None:
        subject = _chinese_subject(scene, rng, "有")
        return rng.choice((subject, f"一张图{comma}{subject}"))
    behind = _chinese_background(scene.background)
    return rng.choice(
        (
            f"{behind}背景上{comma}{_chinese_subject(scene, rng, '有')}",
            f"{behind}背景{comma}{_chinese_subject(scene, rng, '')}",
            f"{_chinese_subject(scene, rng, '')}{comma}{behind}背景",
        )
    )


def _chinese_subject(scene: Scene, rng: Random, there_is: str) -> str:
    first, *rest = [_chinese_thing(thing) for thing in scene.things]
    if not rest:
        return f"{there_is}{first}" if scene.place is None else f"{ZH_CELLS[scene.place]}有{first}"
    second = rest[0]
    if scene.place is None:
        return f"{there_is}{first}和{second}"
    forth, back = ZH_RELATIONS[scene.place]
    return rng.choice((f"{first}在{second}的{forth}", f"{second}在{first}的{back}", f"{second}的{forth}有{first}"))


def _chinese_thing(thing: Thing) -> str:
    return f"一个{ZH_SIZES.get(thing.size or '', '')}{ZH_COLOURS[thing.colour]}{ZH_SHAPES[thing.shape]}"


def _chinese_background(background: Background) -> str:
    start, end = ZH_COLOURS[background.start], ZH_COLOURS[background.end]
    if background.plain:
        return start
    return f"从{'上到下' if background.downwards else '左到右'}由{start}渐变到{end}的"
