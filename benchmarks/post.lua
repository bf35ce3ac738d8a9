-- Sends the request bodies of a file in turn, and prints what happened as JSON. Run wrk with one thread (-t1), so that the turns are exact.
-- Arguments: the file, the Content-Type, the number of the first request. In the file, a line "BYTES SERIAL" precedes each body. The 12
-- digits that begin at the byte SERIAL (counted from 1; 0: there are none) are replaced by a number that no other request has.
function init(args)
  local file = io.open(args[1], "rb")
  requests = {}
  for line in file:lines() do
    local bytes, serial = line:match("(%d+) (%d+)")
    local request = wrk.format("POST", nil, {["Host"] = wrk.headers["Host"], ["Content-Type"] = args[2]}, file:read(tonumber(bytes)))
    local at = #request - bytes + serial
    requests[#requests + 1] = serial == "0" and {request} or {request:sub(1, at - 1), request:sub(at + 12)}
  end
  file:close()
  number = tonumber(args[3])
end

function request()
  number = number + 1
  local before, after = unpack(requests[number % #requests + 1])
  return after and before .. string.format("%012d", number) .. after or before
end

function done(summary, latency)
  local e = summary.errors
  io.stderr:write(string.format(
    '{"requests_per_second": %.1f, "p50_ms": %.3f, "p99_ms": %.3f, "errors": %d, "requests": %d}\n',
    summary.requests / summary.duration * 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    e.connect + e.read + e.write + e.status + e.timeout, summary.requests))
end
