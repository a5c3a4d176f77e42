"""The commands that make a version describe it in the same lines."""

from placement.new_version import print_version
from storage.bundles import read_bundle


def test_a_new_version_is_described_in_aligned_lines(trained_bundle, capsys):
    bundle = read_bundle(trained_bundle)
    bundle = bundle.model_copy(update={"metrics": {"r2": 0.90625, "mae": 12345.678}})
    print_version("my models/v1", bundle, {"report": "v1.html"}, ["one thing", "another"])
    uri, model, *lines, following = capsys.readouterr().out.splitlines()
    assert uri == "uri       my models/v1"
    assert model == f"model     {bundle.model.estimator}"
    assert lines[-5:] == [
        "r2        0.9062",
        "mae       12345.7",
        "threshold 0.5",
        "note      one thing",
        "note      another",
    ]
    assert "report    v1.html" in lines
    assert following == "next      placement up --model 'my models/v1'"


def test_a_version_that_knows_the_previous_one_is_rolled_out(trained_bundle, capsys):
    bundle = read_bundle(trained_bundle)
    print_version("models/v2", bundle.model_copy(update={"previous": (bundle.as_previous(),)}), {}, [])
    assert capsys.readouterr().out.endswith("next      placement rollout models/v2\n")
