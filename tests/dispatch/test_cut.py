"""The choice for all sites at once: optimal against brute force, where greedy loses, and the price of noise."""

from __future__ import annotations

import itertools
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loka_compile.dispatch import cut
from loka_compile.dispatch.cut import Choice, Problem, Ride, choose, frontier

EPSILON = 1e-9
times = st.integers(0, 20).map(float)


def greedy(problem: Problem) -> dict[str, int]:
    """Every site by itself, as if it alone paid for its forms."""
    alone = lambda choice: choice.us + sum(problem.forms[form] for form in choice.forms)  # noqa: E731
    return {site: min(range(len(c)), key=lambda i: alone(c[i])) for site, c in problem.sites.items()}


def brute_force(problem, weight=0.0):
    """The least price of all assignments."""
    ranges = [range(len(choices)) for choices in problem.sites.values()]
    every = (dict(zip(problem.sites, picks, strict=True)) for picks in itertools.product(*ranges))
    return min(problem.us(picks) + weight * problem.noise(picks) for picks in every)


@st.composite
def problems(draw, alternatives=3, most_sites=5, most_forms=4, rides=False):
    forms = {f"x{number}": draw(times) for number in range(draw(st.integers(0, most_forms)))}
    some = st.lists(st.sampled_from(sorted(forms)), max_size=2, unique=True) if forms else st.just([])
    sites = {}
    for number in range(draw(st.integers(1, most_sites))):
        keep = Choice("keep", draw(times))
        lower = [
            Choice(f"recipe{i}", draw(times), tuple(draw(some)), draw(st.integers(0, 9)) / 8)
            for i in range(draw(st.integers(0, alternatives)))
        ]
        sites[f"site{number}"] = (keep, *lower)
    if not rides:
        return Problem(sites, forms)
    emitting = st.frozensets(st.sampled_from(["keep", "recipe0", "recipe1"][: alternatives + 1]))
    ride = st.builds(Ride, st.sampled_from(sorted(sites)), emitting, times)
    riding = draw(st.lists(st.sampled_from(sorted(forms)), unique=True)) if forms else []
    return Problem(sites, forms, {form: draw(ride) for form in riding})


THREE_READERS = Problem(
    {name: (Choice("keep", 10.0), Choice("int8", 6.0, ("x",))) for name in "abc"},
    {"x": 5.0},
)
"""The cast of x costs more than any of its three readers gains alone, and less than they gain together."""


def test_greedy_loses_where_a_cast_is_shared():
    assert set(greedy(THREE_READERS).values()) == {0}
    picks = choose(THREE_READERS)
    assert set(picks.values()) == {1}
    assert THREE_READERS.us(greedy(THREE_READERS)) == 30 and THREE_READERS.us(picks) == 23


@given(problems())
def test_small_graphs_are_solved_exactly(problem):
    assert problem.us(choose(problem)) == pytest.approx(brute_force(problem), abs=EPSILON)


@given(problems(), st.integers(0, 40).map(lambda n: n / 4))
def test_with_a_price_of_noise_too(problem, weight):
    picks = choose(problem, weight)
    assert problem.us(picks) + weight * problem.noise(picks) == pytest.approx(brute_force(problem, weight), abs=1e-2)


@given(problems(rides=True), st.integers(0, 40).map(lambda n: n / 4))
def test_forms_that_ride_on_a_site_are_priced_by_its_choice(problem, weight):
    picks = choose(problem, weight)
    assert problem.us(picks) + weight * problem.noise(picks) == pytest.approx(brute_force(problem, weight), abs=1e-2)


@given(problems(alternatives=1, most_sites=8, most_forms=6, rides=True))
def test_the_minimum_cut_is_exact_with_forms_that_ride_on_those_that_move_too(problem):
    part = cut._priced(problem, 0.0)
    stay, move = {s: 0 for s in part.sites}, {s: len(c) - 1 for s, c in part.sites.items()}
    price, best = part.price(cut._cut(part, stay, move)), part.price(cut._try_all(part))
    assert price == best if cut._rides_with(part, stay, move) else price >= best


@given(problems(alternatives=3, most_sites=6, most_forms=6, rides=True))
def test_expansion_with_rides_is_never_worse_than_greedy(problem):
    part = cut._priced(problem, 0.0)
    assert part.price(cut._try_all(part)) <= part.price(cut._expand(part)) <= part.price(greedy(problem))


def test_a_tower_of_twenty_layers_goes_together():
    """No layer pays alone; where each makes the next one's operand on the way, all but the first cast are free."""
    sites = {f"l{i}": (Choice("fp8", 9.0, (f"x{i}",)), Choice("keep", 10.0)) for i in range(20)}
    forms = {f"x{i}": 3.0 for i in range(20)}
    rides = {f"x{i}": Ride(f"l{i - 1}", frozenset(["fp8"]), 0.0) for i in range(1, 20)}
    assert set(choose(Problem(sites, forms)).values()) == {1}
    together = Problem(sites, forms, rides)
    assert set(choose(together).values()) == {0} and together.us(choose(together)) == 20 * 9 + 3
    assert together.us(greedy(together)) == 200


@given(problems(alternatives=1, most_sites=8, most_forms=6))
def test_the_minimum_cut_is_exact_with_one_alternative(problem):
    part = cut._priced(problem, 0.0)
    stay, move = {s: 0 for s in part.sites}, {s: len(c) - 1 for s, c in part.sites.items()}
    assert part.price(cut._cut(part, stay, move)) == part.price(cut._try_all(part))


@given(problems(alternatives=3, most_sites=6, most_forms=6))
def test_expansion_is_never_worse_than_greedy_nor_than_any_uniform_choice(problem):
    part = cut._priced(problem, 0.0)
    price = part.price(cut._expand(part))
    assert part.price(cut._try_all(part)) <= price <= part.price(greedy(problem))
    for index in range(4):
        assert price <= part.price({site: min(index, len(c) - 1) for site, c in problem.sites.items()})


@pytest.mark.parametrize("seed", range(3))
def test_large_graphs_are_solved_too(seed):
    """A training graph of 200 sites; parts that share more forms than are tried go to the cuts."""
    random = Random(seed)
    forms = {f"x{number}": random.uniform(0, 20) for number in range(100)}
    sites = {
        f"site{number}": (
            Choice("keep", random.uniform(5, 50)),
            *(Choice(r, random.uniform(1, 40), tuple(random.sample(sorted(forms), 2))) for r in ("bf16", "int8")),
        )
        for number in range(200)
    }
    problem = Problem(sites, forms)
    assert problem.us(choose(problem)) <= problem.us(greedy(problem))


def test_keeping_is_first_and_wins_ties():
    assert choose(Problem({"a": (Choice("keep", 5.0), Choice("int8", 5.0))}, {})) == {"a": 0}


def test_a_site_without_alternatives_and_no_site_at_all():
    assert choose(Problem({"a": (Choice("keep", 5.0),)}, {})) == {"a": 0}
    assert choose(Problem({}, {})) == {} and len(frontier(Problem({}, {}))) == 1


# ---------------------------------------------------------------- the frontier


@given(problems())
def test_every_point_of_the_frontier_is_optimal_at_some_price(problem):
    points = frontier(problem)
    assert points[0].us == pytest.approx(brute_force(problem), abs=EPSILON)
    for fast, quiet in itertools.pairwise(points):
        assert fast.us <= quiet.us + EPSILON and fast.noise > quiet.noise
        weight = (quiet.us - fast.us) / (fast.noise - quiet.noise)
        best = brute_force(problem, weight)
        for point in (fast, quiet):
            assert point.us + weight * point.noise == pytest.approx(best, abs=2e-2)


@given(problems())
def test_the_frontier_ends_where_noise_is_least(problem):
    least = sum(min(choice.noise for choice in choices) for choices in problem.sites.values())
    assert frontier(problem)[-1].noise == pytest.approx(least)


def test_a_frontier_by_hand():
    """Per unit of noise, a saves 4 and b saves 2: b goes first."""
    problem = Problem(
        {
            "a": (Choice("keep", 10.0), Choice("fp8", 6.0, (), 1.0)),
            "b": (Choice("keep", 10.0), Choice("fp8", 4.0, (), 3.0)),
        },
        {},
    )
    assert [(point.us, point.noise) for point in frontier(problem)] == [(10, 4), (16, 1), (20, 0)]
