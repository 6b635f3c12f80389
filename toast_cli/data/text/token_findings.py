"""What a tokenizer and a format make of conversations: their lengths, and those that cannot be learned as they are."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field


@dataclass
class TokenFindings:
    """The lengths of the conversations of a split in tokens, and the names of those that are not learned whole.

    Attributes:
        limit: maximum number of tokens of a text.
        lengths: number of tokens of every text, before it is truncated. A conversation may become several texts.
        truncated: number of tokens of the texts that are longer than `limit`, by the name of the conversation.
        rejected: error of the chat template, by the name of the conversation.
        unlearnable: conversations with a text that has no token to learn within `limit`.
    """

    limit: int
    lengths: array[int] = field(default_factory=lambda: array("q"))
    truncated: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    unlearnable: list[str] = field(default_factory=list)

    def add(self, name: str, tokens: int) -> None:
        """Add a text of a conversation."""
        self.lengths.append(tokens)
        if tokens > self.limit:
            self.truncated[name] = max(tokens, self.truncated.get(name, 0))

    def describe_rejected(self, total: int) -> list[str]:
        """Return a note on the conversations, of `total`, that the chat template rejects."""
        if not self.rejected:
            return []
        why = next(iter(self.rejected.values()))
        return [f"{len(self.rejected):,} of {total:,} texts were left out: {why}."]
