"""The tutorial's function, in Python. What is made out here is made once per execution environment, in its init phase,
and serves every invocation that the environment gets."""

import datetime
import platform

opened = datetime.datetime.now(datetime.timezone.utc).isoformat()
answered = 0
print("connection opened")


def handler(event, context):
    global answered
    answered += 1
    return {
        "greeting": f"Hello, {event.get('name', 'world')}!",
        "python": platform.python_version(),
        "connectionOpened": opened,
        "queriesOnThisConnection": answered,
        "millisecondsLeft": context.get_remaining_time_in_millis(),
    }
