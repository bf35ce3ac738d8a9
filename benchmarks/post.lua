-- Sends one request body again and again, and prints what happened as JSON. Arguments: the file, its Content-Type.
function init(args)
  local file = io.open(args[1], "rb")
  wrk.method = "POST"
  wrk.headers["Content-Type"] = args[2]
  wrk.body = file:read("*a")
  file:close()
end

function done(summary, latency, requests)
  local e = summary.errors
  io.stderr:write(string.format(
    '{"requests_per_second": %.1f, "p50_ms": %.3f, "p99_ms": %.3f, "errors": %d, "requests": %d}\n',
    summary.requests / summary.duration * 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    e.connect + e.read + e.write + e.status + e.timeout, summary.requests))
end
