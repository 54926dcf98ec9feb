"""Token ids that are kept within bytes."""

from __future__ import annotations

from prm_core.models.text_cache import TextCache, _size


def test_texts_are_asked_once_while_they_are_kept_and_the_oldest_goes_first():
    asked = []

    def encode(text: str) -> tuple[int, ...]:
        asked.append(text)
        return tuple(range(len(text)))

    cache = TextCache(encode, 16 * _size("a", (0,)))
    for text in ("a", "b", "a"):
        assert cache(text) == (0,)
    assert asked == ["a", "b"]
    for text in "cdefghijklmnop":
        cache(text)
    cache("a")
    # Only `b` was not used since; what is too long is not kept at all.
    for text in ("z", "a", "b", "x" * 100, "x" * 100):
        cache(text)
    assert asked[16:] == ["z", "b", "x" * 100, "x" * 100]
    assert cache.size <= 16 * _size("a", (0,))
