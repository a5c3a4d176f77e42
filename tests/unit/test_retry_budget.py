"""Calls are sent again, but hardly more of them than are answered."""

from transformer.batching.retry_budget import EARNED, MAX_SAVED, RetryBudget


def test_what_is_saved_up_is_spent_once():
    budget = RetryBudget()
    assert sum(budget.spend() for _ in range(1000)) == MAX_SAVED


def test_for_a_fifth_of_the_answered_requests_calls_may_be_sent_again():
    budget = RetryBudget()
    while budget.spend():
        pass
    spent = 0
    for _ in range(1000):
        budget.earn(1)
        spent += budget.spend()
    assert spent == 1000 * EARNED


def test_no_more_than_the_most_is_saved_up():
    budget = RetryBudget()
    budget.earn(10_000)
    assert sum(budget.spend() for _ in range(1000)) == MAX_SAVED
