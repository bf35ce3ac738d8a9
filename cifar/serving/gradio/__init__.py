"""All code that depends on internals of Gradio. Gradio is pinned; read this list before you upgrade it.

Each entry names an internal of Gradio 6.31, what depends on it, and the test that fails if it changes. The rest of the project
uses only Gradio's documented interface; `tests/project/test_structure.py` checks this.

mount.py
    `Blocks.has_launched`, a security switch: while it is False, Gradio accepts any path on the server as a file of a call.
        gradio_api/test_gradio.py::test_gradios_own_check_of_file_paths_is_switched_on
    `Blocks.state_session_capacity` limits the memory for open pages.
        gradio_api/test_bounded.py::test_opened_pages_leave_little_for_the_garbage_collector
    `GRADIO_TEMP_DIR` is read when a component is created; uploads are written below it.
        gradio_api/test_uploads.py::test_calls_write_no_files_and_a_worker_deletes_the_old_uploads_of_all_workers
    `mount_gradio_app` adds one `Mount`, whose `app` is replaced by the guard and the session router.
        gradio_api/test_gradio.py::test_the_routes_of_gradio_that_the_page_does_not_need_are_closed
components.py
    `preprocess`, `postprocess`, `get_block_name` and `example_payload` of components; a component is created again from its class.
        gradio_api/test_endpoints.py::test_gradio_client_gets_our_error_messages
    `data_model` of an instance decides which values Gradio accepts for it.
        gradio_api/test_endpoints.py::test_gradio_client_gets_a_row_for_each_file_and_each_file_in_an_archive
    `save_file_to_cache` and `GRADIO_CACHE` put an example into the folder of uploads.
        page/test_browser.py::test_a_click_on_an_example_classifies_it
    `component_meta.create_or_modify_pyi` writes stub files. No test; a file `components.pyi` would appear. (It also costs 1.0 of
    the 2.5 s of importing the app: median of 7 imports on 2 cores, same memory. A hook that avoided this was removed, because
    gunicorn imports the app once, before it starts the workers.)
    `Blocks.validate_inputs` sees the list of a call's values before they are used, and may add to it.
        gradio_api/test_endpoints.py::test_a_plain_http_call_may_leave_out_the_last_values
__init__.py
    `gradio.caching` uses pandas only to compare cached values, of which this project has none. No other module of Gradio imports pandas.
        gradio_api/test_workers.py::test_no_process_loads_a_large_library_that_it_does_not_use
calls.py
    `gr.Request.request` is Starlette's request, with the `state` that our middleware set.
        gradio_api/test_gradio.py::test_gradio_client_and_rest_give_the_same_answer
guard.py, routes.py
    The paths of Gradio, and which of them the page and the clients use.
        gradio_api/test_gradio.py::test_the_routes_of_gradio_that_the_page_does_not_need_are_closed
    Any object with a `path` in a call is a file, and `file=` takes a URL.
        gradio_api/test_gradio.py::test_no_file_of_the_server_is_read_for_a_caller
        gradio_api/test_gradio.py::test_the_server_fetches_no_url_for_a_caller
    Gradio adds CORS headers for every origin to the answer to a request with `Origin`, so the guard removes that header.
        rest/test_api.py::test_an_origin_that_is_not_allowed_gets_no_cors_header
    The header `x-gradio-server` sets the address in Gradio's answers.
        images/test_hostile.py::test_the_header_x_gradio_server_does_not_put_another_host_into_the_page
    An error response is `{"error": ...}` with status 500, also for a call that does not fit its endpoint.
        gradio_api/test_gradio.py::test_a_malformed_call_to_gradio_never_gets_a_5xx
events.py
    `event_ids_to_events`, `pending_messages_per_session` and `pending_event_ids_session` of `Blocks._queue`.
        rest/test_http.py::test_a_stream_that_does_not_exist_is_answered_404
bounded.py
    `GradioUploadFile.sha` names an upload's folder; `file_upload_statuses` of `gradio.routes` has `_statuses` and `_signals`.
        gradio_api/test_bounded.py::test_two_uploads_of_one_photo_have_paths_that_nobody_can_guess
        gradio_api/test_bounded.py::test_the_progress_of_uploads_is_forgotten
    `GradioUploadFile.seek` is called once, when the file is complete.
        gradio_api/test_bounded.py::test_of_an_upload_of_many_files_only_one_is_open
    `GRADIO_ANALYTICS_MAX_EVENTS` and `GRADIO_ANALYTICS_CACHE_FREQUENCY` are read when a queue is created.
        gradio_api/test_bounded.py::test_gradio_computes_no_statistics_after_a_call
    `utils.MatplotlibBackendMananger` surrounds each call, and imports matplotlib.
        gradio_api/test_workers.py::test_no_process_loads_a_large_library_that_it_does_not_use
    `gradio.queueing.AsyncQueue` makes the queue of a session's messages, and `Blocks._queue.send_message` fills it.
        gradio_api/test_bounded.py::test_results_that_nobody_reads_take_a_limited_amount_of_memory
    Each queued call passes `Blocks._queue.push`, and a result that nobody fetched stays in `pending_event_ids_session`.
        auth/test_sessions_of_callers.py::test_another_caller_cannot_use_a_session
        gradio_api/test_bounded.py::test_calls_that_nobody_reads_are_forgotten
affinity.py, routes.py
    A session is named in the body (`session_hash`), the query (`session_hash`, `upload_id`) or the path.
        gradio_api/test_workers.py::test_every_call_of_every_gradio_client_gets_its_own_answer
        gradio_api/test_workers.py::test_any_worker_can_report_the_progress_of_an_upload
    The answer to `POST /gradio_api/call/NAME` has an `event_id`, with which the client asks for the result.
        gradio_api/test_workers.py::test_a_call_by_curl_finds_its_event_through_any_worker
    The event `unexpected_error` ends a stream, and Gradio's clients show its message.
        gradio_api/test_workers.py::test_when_a_worker_dies_its_streams_end_with_a_reason_and_no_others_end
    Of uvicorn, not Gradio: `Server.startup` and `Server.capture_signals` are overridden.
        gradio_api/test_workers.py::test_a_reload_under_load_costs_no_request
page/static/page.js
    `changeLocale` of the file `/assets/core-*.js`, and the text nodes of the tabs, for the language.
        page/test_page_access.py::test_the_page_speaks_the_browsers_language_and_can_be_switched_without_losing_the_answer
    `window.gradio_config`: `i18n_translations`, `root`, `max_file_size`; the key `common.complete` of Gradio's own texts.
        page/test_page_access.py::test_every_tab_fits_any_width_can_be_read_and_speaks_one_language
    Gradio's front end calls `window.fetch`, which is replaced to show errors on the page.
        page/test_browser.py::test_a_server_that_does_not_answer_is_reported_on_the_page
    Gradio's listeners for `change` and `drop` run in the bubbling phase, so a capturing listener can refuse a file before.
        page/test_browser.py::test_a_photo_over_the_size_limit_gets_an_error_message_and_is_not_sent
page/static/live.js
    `gradio_config.dependencies` has the `fn_index` of the function for a frame, called by `POST /gradio_api/run/predict`.
        page/test_browser.py::test_the_live_camera_sends_one_frame_at_a_time
page/static/page.css
    The class names of Gradio's elements, such as `.gradio-container` and `.toast-wrap`. No test; compare screenshots.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _ImportedAtFirstUse(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def _import_gradio() -> None:
    """Import Gradio without pandas, which it imports for a function that is not used here.

    pandas, and pyarrow if it is installed, take 66 of the 222 MB that importing the app takes (Gradio 6.31, pandas 3.1, 2026-11-26).
    """
    hidden = "pandas" not in sys.modules
    if hidden:
        sys.modules["pandas"] = _ImportedAtFirstUse("pandas")
    try:
        import gradio  # noqa: F401
    finally:
        if hidden:
            del sys.modules["pandas"]


_import_gradio()
