from google.protobuf.empty_pb2 import *
