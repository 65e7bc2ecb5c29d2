"""Run it with `farcall run FILE`, or with a text of your own: `farcall run FILE --text "..."`."""

import farcall

app = farcall.App("language-guess")

SAMPLES = {
    "English": "the quick brown fox jumps over the lazy dog and this is what they have been thinking",
    "German": "der schnelle braune fuchs springt ueber den faulen hund und das haben sie sich gedacht",
    "Spanish": "el rapido zorro marron salta sobre el perro perezoso y esto es lo que ellos han pensado",
}


# A container keeps an instance: what `load` does is done once for each container, not for each call.
@app.cls(scaledown_window=30)
class Guesser:
    size: int = farcall.parameter(default=2)  # instances with other values have containers of their own

    @farcall.enter()
    def load(self) -> None:
        self.models = {name: self._frequencies(text) for name, text in SAMPLES.items()}
        print(f"loaded {len(self.models)} models")

    @farcall.method()
    def guess(self, text: str) -> str:
        """The language of the samples that `text` is most like."""
        seen = self._frequencies(text.lower())
        return max(
            self.models, key=lambda name: sum(min(seen[part], self.models[name].get(part, 0.0)) for part in seen)
        )

    @farcall.exit()
    def close(self) -> None:
        print("bye")

    def _frequencies(self, text: str) -> dict[str, float]:
        parts = [text[i : i + self.size] for i in range(len(text) - self.size + 1)]
        return {part: parts.count(part) / len(parts) for part in set(parts)}


@app.local_entrypoint()
def main(text: str = "und wo ist das schnelle ding geblieben") -> None:
    guesser = Guesser(size=3)
    print(f"{text!r}: {guesser.guess.remote(text)}")
    for answer in guesser.guess.map(["where have they been", "el perro y el zorro"]):
        print(answer)
