"""A terminal as far as the renderer uses one: a screen of lines, a cursor, and the few sequences that move it."""

import re


class FakeTerminal:
    """What a person would see. Write to it as to a text stream; several streams may share one screen."""

    def __init__(self, *, terminal: bool = True, screen: "FakeTerminal | None" = None) -> None:
        self._terminal = terminal
        self._shared = screen
        self.lines: list[str] = [""]
        self._row = 0
        self._column = 0
        self.written = ""

    def isatty(self) -> bool:
        return self._terminal

    def flush(self) -> None: ...

    def write(self, text: str) -> int:
        self.written += text
        (self._shared or self)._show(text)
        return len(text)

    def seen(self) -> list[str]:
        """The lines on the screen, without colour and without the empty last one."""
        lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in self.lines]
        return lines[:-1] if lines and not lines[-1] else lines

    def _show(self, text: str) -> None:
        for piece in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|\n|\r|[^\x1b\n\r]+", text):
            if piece == "\n":
                self._row += 1
                self._column = 0
                if self._row == len(self.lines):
                    self.lines.append("")
            elif piece == "\r":
                self._column = 0
            elif piece.startswith("\x1b"):
                self._control(piece)
            else:
                line = self.lines[self._row].ljust(self._column)
                self.lines[self._row] = line[: self._column] + piece + line[self._column + len(piece) :]
                self._column += len(piece)

    def _control(self, sequence: str) -> None:
        number = int(sequence[2:-1] or 1) if sequence[2:-1].isdigit() or not sequence[2:-1] else 0
        if sequence.endswith("A"):
            self._row = max(self._row - number, 0)
        elif sequence.endswith("J"):
            self.lines[self._row] = self.lines[self._row][: self._column]
            del self.lines[self._row + 1 :]
        else:
            assert sequence.endswith("m"), f"not understood: {sequence!r}"
