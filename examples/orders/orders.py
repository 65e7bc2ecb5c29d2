"""Orders in many currencies, added up in euros: an app with tests of its own, in test_orders.py.

farcall run examples/orders/orders.py
"""

import csv
import io

import farcall

app = farcall.App("orders")

RATES = "EUR,1\nUSD,0.92\nSEK,0.088\n"  # what a bank would be asked for
ORDERS = "id,amount,currency\n1,100,EUR\n2,50,USD\n3,1000,SEK\n4,7,XXX\n"


@app.function(retries=farcall.Retries(max_retries=3, initial_delay=2.0, backoff_coefficient=2.0), timeout=20)
def fetch_rates() -> str:
    """Euros for one unit of each currency, as CSV."""
    return RATES


@app.cls(scaledown_window=600)
class Converter:
    """Asks for the rates once, when its container starts."""

    @farcall.enter()
    def load(self) -> None:
        self.rates = {currency: float(rate) for currency, rate in csv.reader(io.StringIO(fetch_rates.remote()))}

    @farcall.method()
    def euros(self, amount: float, currency: str) -> float:
        """Raises LookupError for a currency without a rate."""
        if currency not in self.rates:
            raise LookupError(f"no rate for {currency}")
        return round(amount * self.rates[currency], 2)


@app.function()
def total(orders: str) -> tuple[float, list[str]]:
    """The sum of all orders (CSV with a header) in euros, and the ids of those that have no rate."""
    rows = list(csv.DictReader(io.StringIO(orders)))
    inputs = [(float(row["amount"]), row["currency"]) for row in rows]
    results = list(Converter().euros.starmap(inputs, return_exceptions=True))
    euros, unknown = 0.0, list[str]()
    for row, result in zip(rows, results, strict=True):
        if isinstance(result, LookupError):
            unknown.append(row["id"])
        elif isinstance(result, Exception):
            raise result
        else:
            euros += result
    return round(euros, 2), unknown


@app.local_entrypoint()
def main() -> None:
    euros, unknown = total.remote(ORDERS)
    print(f"{euros} EUR; no rate for the orders {', '.join(unknown)}")
