"""The endpoints, and how each request goes: read, checked, submitted, and answered whole or as a stream."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ..errors import Mistake
from . import anthropic, completions, edits, fim, ollama, openai, page_files, responses
from .bodies import Body, parse, read
from .engine import Busy, Engine, Job, Stopping
from .frames import Json, Left, Stream, read_body, unless_gone
from .guard import Guard
from .plan import Plan
from .refusal import Refusal, log, refusal
from .reply import Reply
from .wire import Wire

PROTOCOLS = (openai, completions, responses, anthropic, fim, edits, ollama)


def endpoint(kind: type[Body], prepare: Callable[[Engine, Body], Plan], wire: Callable[[Engine, Plan], Wire]):
    """Returns a handler that answers a body of `kind` as `wire` writes it."""

    async def handle(request: Request) -> Response:
        engine: Engine = request.app.state.engine
        engine.check()
        data = await read_body(request)
        plan = await asyncio.to_thread(lambda: prepare(engine, read(kind, parse(data))))
        return await answer(request, engine, plan, wire(engine, plan))

    return handle


async def answer(request: Request, engine: Engine, plan: Plan, wire: Wire) -> Response:
    reply = Reply(asyncio.get_running_loop())
    tokens = plan.prompt_tokens + plan.ask.max_tokens
    job = Job(lambda waited: plan.task(engine, reply.put, waited), reply, places=plan.rows, tokens=tokens)
    engine.submit(job)
    if plan.body.stream or plan.body.diffusing:  # not the body that was given: Ollama streams by default
        return Stream(frames(request, engine, job, wire), wire.media_type)
    try:
        return Json(wire.whole(await unless_gone(request, reply.wait())))
    except Left:
        return Response(status_code=499)  # which nobody reads
    finally:
        engine.cancel(job)


async def frames(request: Request, engine: Engine, job: Job, wire: Wire) -> AsyncIterator[bytes]:
    """Yields the frames of a stream, to its end or an error."""
    try:
        for piece in wire.begin():
            yield piece
        async with aclosing(job.reply.events()) as events:
            async for event in events:
                for piece in [wire.ping] if event is None else wire.event(event):
                    yield piece
        for piece in wire.end(job.reply.result):
            yield piece
    except Exception as error:  # noqa: BLE001, the client is told
        for piece in wire.failed(logged(request, error)):
            yield piece
    finally:
        engine.cancel(job)


def logged(request: Request, error: Exception) -> Refusal:
    """Returns what the client is told, and logs what is our fault."""
    refused = refusal(error, str(request.app.state.engine.tokenizer.folder))
    if refused.status == 500:
        log.error("%s %s", request.method, request.url.path, exc_info=error)
    return refused


async def refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        path = request.url.path
        there = f"; there is /v1{path}" if any(route.path == f"/v1{path}" for route in request.app.routes) else ""
        error = Refusal(error.status_code, f"{request.method} {path}: {error.detail}{there}")
    refused = logged(request, error)
    return Json(refused.body(request.url.path), refused.status, headers=refused.headers)


async def models(request: Request) -> Response:
    """Lists the one model, under whatever name it is asked for."""
    engine: Engine = request.app.state.engine
    name = request.path_params.get("name", engine.name)
    room = engine.model.facts.max_position_embeddings
    entry = {"id": name, "object": "model", "created": request.app.state.since, "owned_by": "mlx_dgemma"}
    entry |= {"max_model_len": room}
    return Json(entry if "name" in request.path_params else {"object": "list", "data": [entry]})


async def health(request: Request) -> Response:
    request.app.state.engine.check()
    return Json({"status": "ok"})


async def metrics(request: Request) -> Response:
    return PlainTextResponse(generate_latest(request.app.state.engine.metrics.registry))


def application(engine: Engine, since: int, **guarded: Any) -> Guard:
    """`since`: when the model was loaded, seconds; `guarded`: who may ask, as `Guard` takes it."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        engine.stop()
        await asyncio.to_thread(engine.join, 10.0)

    answering = {path: handler for protocol in PROTOCOLS for path, handler in protocol.ENDPOINTS.items()}
    posted = {path: endpoint(*handler) for path, handler in answering.items()}
    posted |= {"/v1/messages/count_tokens": anthropic.count_tokens, "/api/show": ollama.show}
    routes = [
        *page_files.ROUTES,
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", models),
        Route("/api/tags", ollama.tags),
        Route("/api/ps", ollama.running),
        Route("/api/version", ollama.version),
        *(Route(path, handler, methods=["POST"]) for path, handler in posted.items()),
    ]
    errors = (HTTPException, Refusal, Mistake, Busy, Stopping, Exception)
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=dict.fromkeys(errors, refuse))
    app.state.engine, app.state.since = engine, since
    paths = {route.path for route in routes}

    def count(path: str, status: int) -> None:
        engine.metrics.requests.labels(path if path in paths else "other", status).inc()

    return Guard(app, count=count, **guarded)
