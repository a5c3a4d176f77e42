"""``python -m transformer``: read the bundle, serve it."""

import sys
from argparse import Namespace

from transformer.batching.pool import PoolSettings
from transformer.batching.scorer import Scorer
from transformer.bundle.format import Bundle, BundleError, load_bundle
from transformer.options import bundle_directory, parse
from transformer.server.byte_budget import LONGEST_REQUESTS, ByteBudget
from transformer.server.kserve_model import TransformerModel
from transformer.server.kserve_server import TransformerServer
from transformer.upstream.client import PredictorAddress


def transformer_model(served: Bundle, options: Namespace) -> TransformerModel:
    """The model to serve: a bundle, and the predictor that the options name."""
    name = options.model_name or served.name
    address = PredictorAddress(
        host=options.predictor_host,
        protocol=options.predictor_protocol,
        model_name=name,
        output=options.predictor_output,
        use_ssl=options.predictor_use_ssl,
    )
    scorer = Scorer(
        served,
        address,
        timeout_s=options.predictor_request_timeout_seconds,
        unknown_category=options.unknown_category,
        settings=PoolSettings(
            connections=options.predictor_connections,
            max_batch_rows=options.max_batch_rows,
            max_waiting_rows=options.max_waiting_rows,
            verify=options.verify,
            unknown_model=options.unknown_model,
            max_age_s=options.predictor_connection_age,
        ),
    )
    room = ByteBudget(LONGEST_REQUESTS * options.max_request_bytes)
    return TransformerModel(name, scorer, options.max_candidates, room)


def main() -> None:
    """Serve until told to stop; a bundle that cannot be served ends the process with one line."""
    options = parse()
    try:
        served = load_bundle(bundle_directory())
    except BundleError as error:
        sys.exit(f"transformer: {error}")
    TransformerServer(options).start([transformer_model(served, options)])


if __name__ == "__main__":
    main()
