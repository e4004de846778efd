"""Figures for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse

from terminus.serving.interfaces.parts import service_of

router = APIRouter(tags=["server"])


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> PlainTextResponse:
    """Prometheus' text format."""
    engine = service_of(request).engine
    tally = engine.tally
    busy = sum(bool(worker.batch) for worker in engine.workers)
    lines = [
        *_family("terminus_jobs_total", "counter", "Jobs that are over, by how they ended."),
        *(f'terminus_jobs_total{{state="{state}"}} {count}' for state, count in sorted(tally.jobs.items())),
        *_single("terminus_images_total", "counter", "Images that were drawn.", tally.images),
        *_single("terminus_hidden_total", "counter", "Images that the safety filter hid.", tally.hidden),
        *_single("terminus_refused_total", "counter", "Jobs that found the queue full.", tally.refused),
        *_single("terminus_worker_restarts_total", "counter", "Workers that ended and were replaced.", tally.restarts),
        *_single("terminus_queue_length", "gauge", "Jobs that wait.", len(engine.queue)),
        *_single("terminus_queue_limit", "gauge", "Jobs that may wait.", engine.limits.waiting),
        *_single("terminus_workers", "gauge", "Workers.", len(engine.workers)),
        *_single("terminus_workers_busy", "gauge", "Workers that draw now.", busy),
        *_single("terminus_ready", "gauge", "1 when an image can be drawn.", int(engine.state == "ready")),
        *_family("terminus_job_seconds", "histogram", "From a job's arrival to its end, of those that finished."),
        *(f'terminus_job_seconds_bucket{{le="{bound:g}"}} {count}' for bound, count in tally.buckets()),
        f'terminus_job_seconds_bucket{{le="+Inf"}} {tally.jobs.get("finished", 0)}',
        f"terminus_job_seconds_sum {tally.seconds:.6f}",
        f"terminus_job_seconds_count {tally.jobs.get('finished', 0)}",
    ]
    return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


def _family(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _single(name: str, kind: str, text: str, value: int) -> list[str]:
    return [*_family(name, kind, text), f"{name} {value}"]
