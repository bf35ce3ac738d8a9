-- Sends one file again and again as the form field `image`, and prints what happened as JSON.
function init(args)
  local file = io.open(args[1], "rb")
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "multipart/form-data; boundary=part"
  wrk.body = '--part\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n'
    .. "Content-Type: application/octet-stream\r\n\r\n" .. file:read("*a") .. "\r\n--part--\r\n"
  file:close()
end

function done(summary, latency, requests)
  local e = summary.errors
  io.stderr:write(string.format(
    '{"requests_per_second": %.1f, "p50_ms": %.3f, "p99_ms": %.3f, "errors": %d, "requests": %d}\n',
    summary.requests / summary.duration * 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    e.connect + e.read + e.write + e.status + e.timeout, summary.requests))
end
