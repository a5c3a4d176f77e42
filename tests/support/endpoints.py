"""Paths and methods of the inference protocols, for the model `placement`."""

V1_PREDICT = "/v1/models/placement:predict"
V1_EXPLAIN = "/v1/models/placement:explain"
V2_INFER = "/v2/models/placement/infer"
GRPC_INFER = "/inference.GRPCInferenceService/ModelInfer"
GRPC_LIVE = "/inference.GRPCInferenceService/ServerLive"

SERVER_READY = "/v2/health/ready"
SERVER_LIVE = "/v2/health/live"
#: Every path that tells if the transformer is ready.
READINESS = (SERVER_READY, "/v2/models/placement/ready", "/v1/models/placement")
