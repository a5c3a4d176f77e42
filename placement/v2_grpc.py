"""KServe's messages and stubs for V2 over gRPC, imported without a side effect.

An import of KServe's SDK parses the command line of the process, and would reject ours. So this module hides
the arguments during the import.
"""

import sys

_arguments, sys.argv = sys.argv, sys.argv[:1]
try:
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
    from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services
finally:
    sys.argv = _arguments

__all__ = ["messages", "services"]
