-- Sends the bodies of a file (one per line) in turn, and prints the figures as one line of JSON.
local bodies = {}
local requests = {}
local turn = 0

function init(args)
   for body in io.lines(args[1]) do
      bodies[#bodies + 1] = body
   end
   for number, body in ipairs(bodies) do
      requests[number] = wrk.format("POST", nil, {["content-type"] = "application/json"}, body)
   end
end

function request()
   turn = turn % #requests + 1
   return requests[turn]
end

function done(summary, latency, _)
   local errors = summary.errors
   io.write(string.format(
      '{"requests": %d, "seconds": %.6f, "p50_ms": %.3f, "p90_ms": %.3f, "p99_ms": %.3f, "failed": %d}\n',
      summary.requests - errors.status, summary.duration / 1e6,
      latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(99) / 1e3,
      errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
