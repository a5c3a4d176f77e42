"""KServe's messages and stubs of the V2 protocol over gRPC, imported without its side effect.

Importing any part of the SDK parses the process's command line, and refuses ours.
"""

import sys

_ours, sys.argv = sys.argv, sys.argv[:1]
try:
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
    from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services
finally:
    sys.argv = _ours

__all__ = ["messages", "services"]
