"""A class with state: `enter` runs once when its container starts, `exit` once when it ends, methods in between.

    farcall run examples/counter.py

State lives as long as the container. `max_containers=1` makes all calls meet in the same one.
"""

import sqlite3

import farcall

app = farcall.App("counter")


@app.cls(max_containers=1)
class VisitCounter:
    @farcall.enter()
    def open(self) -> None:
        self.database = sqlite3.connect("/tmp/visits.db")
        self.database.execute("CREATE TABLE IF NOT EXISTS visits (page TEXT PRIMARY KEY, count INTEGER)")

    @farcall.method()
    def visit(self, page: str) -> int:
        row = self.database.execute(
            "INSERT INTO visits VALUES (?, 1) ON CONFLICT (page) DO UPDATE SET count = count + 1 RETURNING count",
            [page],
        ).fetchone()
        self.database.commit()
        return row[0]

    @farcall.method()
    def totals(self) -> dict[str, int]:
        return dict(self.database.execute("SELECT page, count FROM visits ORDER BY page"))

    @farcall.exit()
    def close(self) -> None:
        self.database.close()


@app.local_entrypoint()
def main() -> None:
    counter = VisitCounter()
    for page in ["/", "/docs", "/", "/about", "/"]:
        print(f"visit {counter.visit.remote(page)} of {page}")
    print(counter.totals.remote())
