package redis

import (
	"context"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/prism-gateway/prism/shared/fault"
)

// script is a program that the server keeps under its hash.
type script struct{ text, hash string }

func newScript(text string) script { return script{text, redis.NewScript(text).Hash()} }

// call is a command that runs the script.
func (s script) call(ctx context.Context, keys []string, args ...any) redis.Cmder {
	all := make([]any, 0, 3+len(keys)+len(args))
	all = append(all, "evalsha", s.hash, len(keys))
	for _, k := range keys {
		all = append(all, k)
	}
	return redis.NewCmd(ctx, append(all, args...)...)
}

// run performs calls of a script. A server that was restarted has forgotten the script: then its text is sent.
func (q *queue) run(ctx context.Context, s script, calls []redis.Cmder) []*fault.Fault {
	faults := q.doAll(ctx, calls)
	var which []int
	var again []redis.Cmder
	for n, f := range faults {
		if f != nil && f.Unwrap() != nil && strings.HasPrefix(f.Unwrap().Error(), "NOSCRIPT") {
			args := append([]any{"eval", s.text}, calls[n].Args()[2:]...)
			calls[n] = redis.NewCmd(ctx, args...)
			which, again = append(which, n), append(again, calls[n])
		}
	}
	if len(again) > 0 {
		for n, f := range q.doAll(ctx, again) {
			faults[which[n]] = f
		}
	}
	return faults
}

// writeScript does one write.
//
// KEYS: item, index. ARGV: operation (p, d, t), condition (driver.Condition), version of the condition, now in
// milliseconds, 1 to keep the expiry, 1 to return the previous item, the item's key, the new record (its header only for
// t). It returns whether it was done, the version that was there, the expiry now, and the previous record.
var writeScript = newScript(`
local item, index = KEYS[1], KEYS[2]
local op, cond, now, key, record = ARGV[1], ARGV[2], tonumber(ARGV[4]), ARGV[7], ARGV[8]
local old
if op == 't' or ARGV[6] == '1' then old = redis.call('GET', item) or '' else old = redis.call('GETRANGE', item, 0, 36) end
local there, exp, version = #old > 0, 0, ''
if there then
  if #old < 37 or string.byte(old, 1) ~= 1 then return redis.error_reply('CORRUPT record') end
  exp = struct.unpack('>I8', old, 2)
  if exp == 0 or exp > now then version = string.sub(old, 18, 33) end
end
local visible = version ~= ''
if (cond == '1' and visible) or (cond == '2' and not visible) or (cond == '3' and (not visible or version ~= ARGV[3]))
  or (op == 't' and not visible) then
  return {0, version, '0', ''}
end
local previous = ''
if visible and ARGV[6] == '1' then previous = old end
if op == 'd' then
  if there then redis.call('DEL', item) end
  redis.call('ZREM', index, key)
  return {1, version, '0', previous}
end
if visible then
  if op == 't' then
    record = string.sub(record, 1, 9) .. string.sub(old, 10, 17) .. string.sub(record, 18, 33) .. string.sub(old, 34)
  elseif struct.unpack('>I8', old, 10) > struct.unpack('>I8', record, 10) then
    record = string.sub(record, 1, 9) .. string.sub(old, 10, 17) .. string.sub(record, 18)
  end
  if ARGV[5] == '1' then record = string.sub(record, 1, 1) .. string.sub(old, 2, 9) .. string.sub(record, 10) end
end
local newexp = struct.unpack('>I8', record, 2)
if not there then redis.call('ZADD', index, 0, key) end
if newexp == 0 then
  redis.call('SET', item, record)
  if not there or exp ~= 0 then redis.call('PERSIST', index) end
else
  -- The index lives as long as the longest of its items.
  local at = string.format('%.0f', newexp + ` + grace + `)
  redis.call('SET', item, record, 'PXAT', at)
  if redis.call('ZCARD', index) == 1 then
    redis.call('PEXPIREAT', index, at)
  else
    local left = redis.call('PTTL', index)
    if left >= 0 then
      local t = redis.call('TIME')
      if newexp + ` + grace + ` > t[1] * 1000 + t[2] / 1000 + left then redis.call('PEXPIREAT', index, at) end
    end
    -- Keys of items that Redis removed leave the index here: two are looked at for each that may have come.
    local prefix = string.sub(item, 1, #item - #key)
    for _, k in ipairs(redis.call('ZRANDMEMBER', index, 2)) do
      if redis.call('EXISTS', prefix .. k) == 0 then redis.call('ZREM', index, k) end
    end
  end
end
return {1, version, string.format('%.0f', newexp), previous}
`)

// grace is how long after its expiry Redis keeps an item, in milliseconds: the clocks of proxies and Redis may differ by
// that much.
const grace = "10000"

// scanScript reads a run of keys.
//
// KEYS: index. ARGV: what item keys begin with, from, to (as ZRANGEBYLEX wants them), 1 for reverse, 1 for keys only,
// limit, bytes, now in milliseconds, length of the id. It returns 1 when there are more, then key and record in turn.
var scanScript = newScript(`
local index, prefix, from, to, reverse, heads = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1', ARGV[5] == '1'
local limit, bytes, now, idlen = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local out, n, size, gone, chunk = {0}, 0, 0, {}, math.min(limit + 1, 100)
while true do
  local keys
  if reverse then keys = redis.call('ZREVRANGEBYLEX', index, to, from, 'LIMIT', 0, chunk)
  else keys = redis.call('ZRANGEBYLEX', index, from, to, 'LIMIT', 0, chunk) end
  for _, k in ipairs(keys) do
    local record
    if heads then
      record = redis.call('GETRANGE', prefix .. k, 0, 4095)
      if #record >= 37 then
        local head = 37 + struct.unpack('>I4', record, 34)
        if head > #record then record = redis.call('GETRANGE', prefix .. k, 0, head - 1) end
        record = string.sub(record, 1, head)
      end
    else
      record = redis.call('GET', prefix .. k) or ''
    end
    if #record < 37 then
      if #record > 0 then return redis.error_reply('CORRUPT record') end
      gone[#gone + 1] = k
    else
      local exp = struct.unpack('>I8', record, 2)
      if exp == 0 or exp > now then
        if n == limit or (n > 0 and size >= bytes) then out[1] = 1 break end
        n = n + 1
        size = size + idlen + #k
        if not heads then size = size + #record - 37 - struct.unpack('>I4', record, 34) end
        out[#out + 1] = k
        out[#out + 1] = record
      end
    end
  end
  if out[1] == 1 or #keys < chunk then break end
  if reverse then to = '(' .. keys[#keys] else from = '(' .. keys[#keys] end
end
for _, k in ipairs(gone) do redis.call('ZREM', index, k) end
return out
`)

// aliveScript says whether an id has a visible item. KEYS: index. ARGV: what item keys begin with, now in milliseconds.
var aliveScript = newScript(`
local from = '-'
while true do
  local keys = redis.call('ZRANGEBYLEX', KEYS[1], from, '+', 'LIMIT', 0, 20)
  for _, k in ipairs(keys) do
    local head = redis.call('GETRANGE', ARGV[1] .. k, 0, 8)
    if #head == 9 then
      local exp = struct.unpack('>I8', head, 2)
      if exp == 0 or exp > tonumber(ARGV[2]) then return 1 end
    end
  end
  if #keys < 20 then return 0 end
  from = '(' .. keys[#keys]
end
`)
