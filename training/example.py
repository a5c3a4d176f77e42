"""A small example of own data: telephone customers, of whom some have left (churn)."""

import csv
import io
import math
import random

#: Rows of the example: enough for a model, and trained in seconds.
ROWS = 500
LABEL = "churn"


def example_csv() -> str:
    """Return the table as CSV; the same in every call.

    Like real tables, it has identifiers, a 0/1 column, and cells that are empty: customers in their first
    month have no total yet.
    """
    chance = random.Random(1)  # noqa: S311 (no secret)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = ["customer_id", "tenure", "contract", "payment", "support", "senior"]
    writer.writerow([*fields, "monthlycharges", "totalcharges", LABEL])
    for number in range(1, ROWS + 1):
        contract = chance.choices(["monthly", "one year", "two years"], [55, 21, 24])[0]
        longest = {"monthly": 40, "one year": 60, "two years": 72}[contract]
        tenure = chance.randint(0, longest)
        payment = chance.choice(["bank transfer", "credit card", "electronic check", "mailed check"])
        support, senior = chance.choice(["yes", "no"]), int(chance.random() < 0.16)
        monthly = round(chance.uniform(19, 118), 2)
        score = -0.6 - 0.045 * tenure + 0.02 * (monthly - 60) + 0.5 * senior
        score += {"monthly": 1.6, "one year": 0.0, "two years": -1.5}[contract]
        score += 0.7 * (payment == "electronic check") - 0.7 * (support == "yes")
        churn = "yes" if chance.random() < 1 / (1 + math.exp(-1.6 * score)) else "no"
        total = f"{monthly * tenure:.2f}" if tenure else ""
        writer.writerow([f"C{number:04}", tenure, contract, payment, support, senior, monthly, total, churn])
    return text.getvalue()
