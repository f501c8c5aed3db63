"""botocore, with a Unix socket where it would open a TCP connection. Everything else of it is as it comes."""

import socket

import boto3
from botocore.awsrequest import AWSHTTPConnection, AWSHTTPConnectionPool
from botocore.config import Config


def client(path, **config):
    """A Lambda client whose every connection leads to the socket at `path`."""

    class Connection(AWSHTTPConnection):
        def _new_conn(self):
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(120)
            connection.connect(path)
            return connection

    class Pool(AWSHTTPConnectionPool):
        ConnectionCls = Connection

    made = boto3.client(
        "lambda",
        region_name="us-east-1",
        endpoint_url="http://localhost",
        # Nobody checks them here, and botocore signs with nothing less.
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        # What went wrong must be seen, not tried again.
        config=Config(retries={"total_max_attempts": 1}, read_timeout=120, proxies={}, **config),
    )
    made._endpoint.http_session._manager.pool_classes_by_scheme = {"http": Pool}
    return made
