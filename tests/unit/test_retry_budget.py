"""The retry budget keeps the number of retries a fraction of the answered requests."""

from transformer.batching.retry_budget import EARNED, MAX_SAVED, RetryBudget


def test_a_saved_retry_is_spent_once():
    budget = RetryBudget()
    assert sum(budget.spend() for _ in range(1000)) == MAX_SAVED


def test_answered_requests_earn_one_retry_in_five():
    budget = RetryBudget()
    while budget.spend():
        pass
    spent = 0
    for _ in range(1000):
        budget.earn(1)
        spent += budget.spend()
    assert spent == 1000 * EARNED


def test_the_budget_has_a_maximum():
    budget = RetryBudget()
    budget.earn(10_000)
    assert sum(budget.spend() for _ in range(1000)) == MAX_SAVED
