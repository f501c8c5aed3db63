"""What who makes a mistake is told: the class of the exception, its code, its status and its words."""

import json

from checks import check, equal

VALIDATION = "1 validation error detected: Value "
SET = "failed to satisfy constraint: Member must satisfy enum value set: "


@check
def each_wrong_setting_is_told_in_lambdas_words(kiln):
    kiln.create("f")
    parameter, model = "InvalidParameterValueException", "ValidationException"
    reserved = ("Lambda was unable to configure your environment variables because the environment variables you have provided "
                "contains reserved keys that are currently not supported for modification. Reserved keys used in this request: ")
    large = {"AA": "x" * 4088}
    for settings, code, message in [
        ({"MemorySize": 64}, model, VALIDATION + "'64' at 'memorySize' failed to satisfy constraint: Member must have value "
         "greater than or equal to 128"),
        ({"MemorySize": 129}, model, VALIDATION + "'129' at 'memorySize' failed to satisfy constraint: Member must be a multiple of 64"),
        ({"MemorySize": 3072}, parameter,
         "'MemorySize' value failed to satisfy constraint: Member must have value less than or equal to 3008"),
        ({"MemorySize": 10240}, parameter,
         "'MemorySize' value failed to satisfy constraint: Member must have value less than or equal to 3008"),
        ({"Timeout": 0}, model, VALIDATION + "'0' at 'timeout' failed to satisfy constraint: Member must have value greater than or equal to 1"),
        ({"Timeout": 901}, model, VALIDATION + "'901' at 'timeout' failed to satisfy constraint: Member must have value less than or equal to 900"),
        ({"EphemeralStorage": {"Size": 511}}, model,
         VALIDATION + "'511' at 'ephemeralStorage.size' failed to satisfy constraint: Member must have value greater than or equal to 512"),
        ({"EphemeralStorage": {"Size": 513}}, model,
         VALIDATION + "'513' at 'ephemeralStorage.size' failed to satisfy constraint: Member must have value less than or equal to 512"),
        ({"Handler": "a b"}, model, VALIDATION + r"'a b' at 'handler' failed to satisfy constraint: Member must satisfy regular expression pattern: [^\s]+"),
        ({"Handler": "x" * 129}, model, VALIDATION + f"'{'x' * 129}' at 'handler' failed to satisfy constraint: Member must have length less than or equal to 128"),
        ({"Role": "me"}, model, VALIDATION + "'me' at 'role' failed to satisfy constraint: Member must satisfy regular expression pattern: "
         r"arn:(aws[a-zA-Z-]*)?:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+"),
        ({"Description": "x" * 257}, model,
         VALIDATION + f"'{'x' * 257}' at 'description' failed to satisfy constraint: Member must have length less than or equal to 256"),
        ({"Runtime": "node99"}, parameter, "Value node99 at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: […"),
        ({"TracingConfig": {"Mode": "x"}}, model, VALIDATION + f"'x' at 'tracingConfig.mode' {SET}[Active, PassThrough]"),
        ({"SnapStart": {"ApplyOn": "x"}}, model, VALIDATION + f"'x' at 'snapStart.applyOn' {SET}[PublishedVersions, None]"),
        ({"LoggingConfig": {"LogFormat": "x"}}, model, VALIDATION + f"'x' at 'loggingConfig.logFormat' {SET}[JSON, Text]"),
        ({"Environment": {"Variables": {"A": "secret"}}}, model, "1 validation error detected: Value at 'environment.variables' failed "
         "to satisfy constraint: Map keys must satisfy constraint: [Member must satisfy regular expression pattern: [a-zA-Z]([a-zA-Z0-9_])+]"),
        ({"Environment": {"Variables": {"AWS_REGION": "x", "TZ": "y", "MINE": "z"}}}, parameter, reserved + "AWS_REGION, TZ"),
        ({"Environment": {"Variables": large}}, parameter,
         "Lambda was unable to configure your environment variables because the environment variables you have provided exceeded the "
         "4KB limit. String measured: " + json.dumps(large, separators=(",", ":"))),
        ({"Timeout": 0, "MemorySize": 64}, model, "2 validation errors detected: Value '0' at 'timeout' failed to satisfy constraint: "
         "Member must have value greater than or equal to 1; Value '64' at 'memorySize' failed …"),
    ]:
        with kiln.refused(code, 400, message):
            kiln.careless.create_function(**{**kiln.settings("new"), **settings})
        with kiln.refused(code, 400, message):
            kiln.careless.update_function_configuration(FunctionName="f", **settings)
    kiln.client.update_function_configuration(FunctionName="f", Environment={"Variables": {"AA": "x" * 4087}})


@check
def each_wrong_creation_is_told_in_lambdas_words(kiln):
    parameter, model = "InvalidParameterValueException", "ValidationException"
    null = "failed to satisfy constraint: Member must not be null"
    for change, code, message in [
        ({"Role": None}, model, f"1 validation error detected: Value null at 'role' {null}"),
        ({"Code": None}, model, f"1 validation error detected: Value null at 'code' {null}"),
        ({"Handler": None}, parameter, "Runtime and Handler are mandatory parameters for functions created with deployment packages."),
        ({"Runtime": None}, parameter, "Runtime and Handler are mandatory parameters for functions created with deployment packages."),
        ({"Code": {}}, parameter, "Please provide a source for function code."),
        ({"Code": {"ZipFile": b""}}, parameter, "Uploaded file must be a non-empty zip"),
        ({"Code": {"ZipFile": b"PK no zip"}}, parameter, "Could not unzip uploaded file. Please check your file, then try to upload again."),
        ({"Code": {"S3Bucket": "b", "S3Key": "k"}}, parameter,
         "Error occurred while GetObject. S3 Error Code: NoSuchBucket. S3 Error Message: The specified bucket does not exist"),
        ({"Code": {"ImageUri": "x"}}, parameter, "Please don't provide ImageUri when updating a function with packageType Zip."),
        ({"PackageType": "Rpm"}, model, VALIDATION + f"'Rpm' at 'packageType' {SET}[Zip, Image]"),
        ({"Architectures": ["sparc"]}, model, VALIDATION + "'[sparc]' at 'architectures' failed to satisfy constraint: Member must "
         "satisfy constraint: [Member must satisfy enum value set: [x86_64, arm64], Member must not be null]"),
        ({"Tags": {f"key{number}": "v" for number in range(51)}}, parameter, "Number of tags exceeds resource tag limit."),
        ({"Tags": {"x" * 129: "v"}}, model, VALIDATION + f"'{{{'x' * 129}=v}}' at 'tags' failed to satisfy constraint: Map keys must …"),
    ]:
        settings = {**kiln.settings("new"), **change}
        with kiln.refused(code, 400, message):
            kiln.careless.create_function(**{member: value for member, value in settings.items() if value is not None})
    with kiln.refused(model, 400, f"3 validation errors detected: Value null at 'functionName' {null}; Value null at 'role' …"):
        kiln.careless.create_function()
    equal(kiln.client.list_functions()["Functions"], [])


@check
def what_is_not_there_yet_is_said_to_be_so(kiln):
    kiln.create("f")
    yet = "Kiln does not support this yet: "
    both = [
        ({"VpcConfig": {"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}}, "VpcConfig"),
        ({"DeadLetterConfig": {"TargetArn": "arn:aws:sqs:us-east-1:000000000000:q"}}, "DeadLetterConfig"),
        ({"FileSystemConfigs": [{"Arn": "arn:aws:elasticfilesystem:x", "LocalMountPath": "/mnt/x"}]}, "FileSystemConfigs"),
        ({"SnapStart": {"ApplyOn": "PublishedVersions"}}, "SnapStart"),
        ({"TracingConfig": {"Mode": "Active"}}, "TracingConfig Active"),
        ({"LoggingConfig": {"LogFormat": "JSON"}}, "LoggingConfig JSON"),
        ({"LoggingConfig": {"LogGroup": "/mine"}}, "another LogGroup than the function's own in LoggingConfig"),
        ({"KMSKeyArn": "arn:aws:kms:us-east-1:000000000000:key/x"}, "KMSKeyArn"),
    ]
    creation = [({"Publish": True}, "Publish: versions"), ({"PackageType": "Image"}, "PackageType Image"),
                ({"Architectures": ["arm64"]}, "an architecture other than this host's")]
    for settings, what in both + creation:
        with kiln.refused("InvalidParameterValueException", 400, yet + what):
            kiln.careless.create_function(**{**kiln.settings("new"), **settings})
    for settings, what in both:
        with kiln.refused("InvalidParameterValueException", 400, yet + what):
            kiln.careless.update_function_configuration(FunctionName="f", **settings)
    for settings, what in [creation[0], creation[2]]:
        with kiln.refused("InvalidParameterValueException", 400, yet + what):
            kiln.client.update_function_code(FunctionName="f", ZipFile=kiln.probe_zip, **settings)
    with kiln.refused("InvalidParameterValueException", 400, yet + "InvocationType Event"):
        kiln.client.invoke(FunctionName="f", InvocationType="Event")
    # An operation that Kiln has not.
    with kiln.refused("UnknownOperationException", 404, "Kiln has no operation GET /2015-03-31/event-source-mappings"):
        kiln.client.list_event_source_mappings()
    equal(kiln.client.get_function_configuration(FunctionName="f")["Description"], "")


@check
def sizes_end_where_lambda_says(kiln):
    kiln.create("f")
    zip_text = "Zipped size must be smaller than 52428800 bytes"
    for operation, arguments in [
        (kiln.client.create_function, {**kiln.settings("new"), "Code": {"ZipFile": bytes(52428800)}}),
        (kiln.client.update_function_code, {"FunctionName": "f", "ZipFile": bytes(52428800)}),
    ]:
        with kiln.refused("RequestEntityTooLargeException", 413, zip_text):
            operation(**arguments)
    # One byte less is looked at, and is no zip.
    with kiln.refused("InvalidParameterValueException", 400, "Could not unzip uploaded file. Please check your file, then try to upload again."):
        kiln.client.update_function_code(FunctionName="f", ZipFile=bytes(52428799))
    text = "Request must be smaller than 70167211 bytes for the {} operation"
    with kiln.refused("RequestEntityTooLargeException", 413, text.format("CreateFunction")):
        kiln.client.create_function(**{**kiln.settings("new"), "Code": {"ZipFile": bytes(52_700_000)}})
    with kiln.refused("RequestEntityTooLargeException", 413, text.format("UpdateFunctionCode")):
        kiln.client.update_function_code(FunctionName="f", ZipFile=bytes(52_700_000))


@check
def lists_and_tags_have_bounds_too(kiln):
    arn = kiln.create("f")["FunctionArn"]
    parameter, model = "InvalidParameterValueException", "ValidationException"
    for items, bound in [(0, "greater than or equal to 1"), (10001, "less than or equal to 10000")]:
        text = VALIDATION + f"'{items}' at 'maxItems' failed to satisfy constraint: Member must have value {bound}"
        with kiln.refused(model, 400, text):
            kiln.careless.list_functions(MaxItems=items)
        with kiln.refused(model, 400, text):
            kiln.careless.list_versions_by_function(FunctionName="f", MaxItems=items)
    with kiln.refused(parameter, 400, "The Marker is not one that ListFunctions has given"):
        kiln.client.list_functions(Marker="x")
    with kiln.refused(model, 400, VALIDATION + f"'x' at 'functionVersion' {SET}[ALL]"):
        kiln.careless.list_functions(FunctionVersion="x")
    with kiln.refused(parameter, 400, "Tags on function aliases and versions are not supported. Please specify a function ARN."):
        kiln.client.list_tags(Resource=f"{arn}:1")
    with kiln.refused(model, 400, VALIDATION + "'f' at 'resource' failed to satisfy constraint: Member must satisfy regular…"):
        kiln.careless.list_tags(Resource="f")
    with kiln.refused("ResourceNotFoundException", 404, f"Function not found: {arn}2"):
        kiln.client.tag_resource(Resource=f"{arn}2", Tags={"a": "b"})
    with kiln.refused(parameter, 400, "An error occurred and the request cannot be processed."):
        kiln.client.tag_resource(Resource=arn, Tags={})
    with kiln.refused(parameter, 400, "Number of tags exceeds resource tag limit."):
        kiln.client.tag_resource(Resource=arn, Tags={f"key{number}": "v" for number in range(51)})


@check
def a_body_that_is_no_json_is_told_from_json_of_another_shape(kiln):
    for body, code, message in [
        (b"{", "InvalidRequestContentException", "Could not parse request body into json: "),
        (b'{"FunctionName": 7}', "SerializationException", "invalid type: "),
    ]:
        answer = kiln.raw("POST", "/2015-03-31/functions", body=body)
        told = json.loads(answer.content)
        equal((answer.status, answer.headers["x-amzn-ErrorType"]), (400, code))
        assert (told.get("message") or told.get("Message")).startswith(message), told
    # The casing of the member is the exception's own; each answer has an id.
    for path, member, kind in [("/2015-03-31/functions/nope", "Message", "ResourceNotFoundException"),
                               ("/2015-03-31/functions/f:1?Qualifier=2", "message", "InvalidParameterValueException"),
                               ("/2015-03-31/functions/a%20b", "message", "ValidationException")]:
        answer = kiln.raw("GET", path)
        told = json.loads(answer.content)
        assert member in told and len(answer.headers["x-amzn-RequestId"]) == 36, told
        equal(answer.headers["x-amzn-ErrorType"], kind)
        equal(told.get("Type"), None if kind == "ValidationException" else "User")
