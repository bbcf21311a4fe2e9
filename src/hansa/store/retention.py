"""tmp"""


async def sweep(*a, **k):
    return {}
