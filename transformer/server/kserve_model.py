"""The model in KServe's registry: its name, its handler and its health. Requests go to the handler."""

from kserve.model import BaseKServeModel

from transformer.server.handler import Handler


class TransformerModel(BaseKServeModel):  # type: ignore[misc]
    """The transformer as KServe's server sees it.

    Parameters
    ----------
    handler
        Answers the requests for the model.
    """

    def __init__(self, handler: Handler) -> None:
        super().__init__(handler.name)
        self.handler = handler
        self.ready = True
