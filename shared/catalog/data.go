package catalog

import (
	"time"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
)

const (
	none    = configv1.Durability_DURABILITY_NONE
	relaxed = configv1.Durability_DURABILITY_RELAXED
	durable = configv1.Durability_DURABILITY_STRONG

	eventual = configv1.Consistency_CONSISTENCY_EVENTUAL
	strong   = configv1.Consistency_CONSISTENCY_STRONG
)

// maxValue leaves room for the rest of a message in a frame of 4 MiB.
const maxValue = 3 << 20

// maxMessage leaves room for the headers of a message of 1 MiB, the most that a NATS server takes unless it is told otherwise.
const maxMessage = 1000 << 10

var types = []BackendType{
	{Name: "clickhouse", Durability: relaxed, Consistency: eventual, NeedsEndpoint: true, Address: HostPort},
	{Name: "kafka", Durability: durable, Consistency: eventual, NeedsEndpoint: true, Address: HostPort},
	{
		Name: "memory", Offered: true, Interfaces: []string{
			"keyvalue", "keyvalue.counter", "keyvalue.idempotency", "keyvalue.large", "keyvalue.list", "keyvalue.scan",
			"keyvalue.transact", "keyvalue.ttl", "keyvalue.version", "keyvalue.watch",
		}, Durability: none, Consistency: strong,
		SingleProcess: true, MaxValueBytes: maxValue, TTLGranularity: time.Millisecond,
		Settings: []Setting{{Name: "sweep", Form: Duration, Text: "how often expired items are removed; default 10s"}},
	},
	{
		// One server writes to its disk at its leisure: what it acknowledged last may be lost with its power.
		Name: "nats", Offered: true, Interfaces: []string{
			"keyvalue", "keyvalue.counter", "keyvalue.large", "keyvalue.list", "keyvalue.scan", "keyvalue.ttl", "keyvalue.version",
			"keyvalue.watch",
			// A server makes what it has written durable every two minutes, unless it is set otherwise, which cannot be seen.
		}, Durability: relaxed, Consistency: strong,
		MaxValueBytes: maxMessage, TTLGranularity: time.Millisecond, NeedsEndpoint: true, Address: HostPort,
		Settings: []Setting{
			{Name: "ca_file", Form: Text, Text: "a file of certificates that the servers' are verified by; asks for TLS"},
			{
				Name: "replicas", Form: OneOf, Values: []string{"1", "3", "5"},
				Text: "on how many servers a stream that is made is kept; default 1",
			},
			{Name: "stream", Form: Text, Text: "the stream's name, made when it is missing; default prism-kv"},
			{Name: "tls", Form: OneOf, Values: []string{"false", "true"}, Text: "whether connections are encrypted; default false"},
		},
	},
	{
		Name: "postgres", Offered: true, Interfaces: []string{
			"keyvalue", "keyvalue.counter", "keyvalue.idempotency", "keyvalue.large", "keyvalue.list", "keyvalue.scan",
			"keyvalue.transact", "keyvalue.ttl", "keyvalue.version",
		}, Durability: durable, Consistency: strong,
		MaxValueBytes: maxValue, TTLGranularity: time.Millisecond, NeedsEndpoint: true, Address: HostPort,
		Settings: []Setting{
			{Name: "ca_file", Form: Text, Text: "the PEM file of who signs the server's certificate; default the system's"},
			{Name: "database", Form: Text, Text: "the database; default prism"},
			{Name: "schema", Form: Text, Text: "the schema that holds Prism's tables, of a-z, 0-9 and _; default prism"},
			{
				Name: "sslmode", Form: OneOf, Values: []string{"verify-full", "require", "disable"},
				Text: "verify-full: TLS with a checked certificate; require: TLS unchecked; disable: none; default verify-full",
			},
			{
				Name: "statement_cache", Form: OneOf, Values: []string{"true", "false"},
				Text: "false behind a pooler that gives a connection for one transaction; default true",
			},
			{Name: "sweep", Form: Duration, Text: "how often expired items are removed; default 30s"},
		},
	},
	{
		// A Redis that syncs its log once a second, as it does by default, may lose that second.
		Name: "redis", Offered: true, Interfaces: []string{
			"keyvalue", "keyvalue.counter", "keyvalue.idempotency", "keyvalue.list", "keyvalue.scan", "keyvalue.transact",
			"keyvalue.ttl", "keyvalue.version",
		}, Durability: relaxed, Consistency: strong,
		MaxValueBytes: maxValue, TTLGranularity: time.Millisecond, NeedsEndpoint: true, Address: HostPort,
		MaxEndpoints: 1,
		Settings:     []Setting{{Name: "database", Form: Number, Text: "the number of the logical database; default 0"}},
	},
	{
		Name: "s3", Offered: true, Interfaces: []string{
			"keyvalue", "keyvalue.large", "keyvalue.list", "keyvalue.scan", "keyvalue.version",
		}, Durability: durable, Consistency: strong,
		Slow: true, MaxValueBytes: maxValue, NeedsEndpoint: true, Address: HostPort, MaxEndpoints: 1,
		Settings: []Setting{
			{
				Name: "addressing", Form: OneOf, Values: []string{"path", "virtual"},
				Text: "whether the bucket stands in the path or in the host's name; default path",
			},
			{Name: "bucket", Form: Text, Text: "the bucket, which must be there; default prism"},
			{Name: "ca_file", Form: Text, Text: "a file of certificates that the server's is verified by; default the system's"},
			{
				Name: "conditional_delete", Form: OneOf, Values: []string{"true", "false"},
				Text: "true where the store checks If-Match and deletes in one step, as Amazon S3 does; default false",
			},
			{Name: "prefix", Form: Text, Text: "what the names of all objects begin with, up to a slash; default nothing"},
			{Name: "region", Form: Text, Text: "the region, which signatures hold; default us-east-1"},
			{Name: "tls", Form: OneOf, Values: []string{"true", "false"}, Text: "whether the server is called by TLS; default true"},
		},
	},
	{
		Name: "sqlite", Offered: true, Interfaces: []string{
			"keyvalue", "keyvalue.counter", "keyvalue.idempotency", "keyvalue.large", "keyvalue.list", "keyvalue.scan",
			"keyvalue.transact", "keyvalue.ttl", "keyvalue.version",
		}, Durability: durable, Consistency: strong,
		SingleMachine: true, MaxValueBytes: maxValue, TTLGranularity: time.Millisecond, NeedsEndpoint: true,
		Address: FileAddress, MaxEndpoints: 1,
		Settings: []Setting{
			{Name: "sweep", Form: Duration, Text: "how often expired items are removed; default 30s"},
			{
				Name: "synchronous", Form: OneOf, Values: []string{"full", "normal"},
				Durability: map[string]configv1.Durability{"normal": relaxed},
				Text:       "full: what is acknowledged survives a loss of power; normal: only the end of the process; default full",
			},
		},
	},
}

var patterns = []Pattern{
	{
		Type: "keyvalue", Versions: []string{"1.0.0"}, Offered: true, Base: []string{"keyvalue"}, Values: true,
		Slots: []Slot{
			{Purpose: "storage", Text: "keeps the items"},
			{
				Purpose: "cache", Optional: true, Copies: true, Interfaces: []string{"keyvalue", "keyvalue.ttl", "keyvalue.version"},
				Text: "holds copies of items, for reads that may be a little old",
			},
		},
		Text: "items by id and key",
	},
	{
		Type: "producer", Versions: []string{"1.0.0"}, Base: []string{"stream.publish"}, Messages: true,
		Slots: []Slot{
			{Purpose: "broker", Text: "takes the messages"},
			{Purpose: "claims", Optional: true, Text: "keeps payloads that are too large for the broker"},
		},
		Text: "messages that are stored when acknowledged",
	},
	{
		Type: "consumer", Versions: []string{"1.0.0"}, Base: []string{"stream.consume"}, Messages: true,
		Slots: []Slot{
			{Purpose: "broker", Text: "has the messages"},
			{Purpose: "claims", Optional: true, Text: "has payloads that were too large for the broker"},
		},
		Text: "messages delivered at least once, in groups",
	},
	{
		Type: "pubsub", Versions: []string{"1.0.0"}, Base: []string{"stream.consume", "stream.publish"}, Messages: true,
		Slots: []Slot{{Purpose: "broker", Text: "carries the messages"}},
		Text:  "messages that each subscriber sees",
	},
	{
		Type: "session-manager", Versions: []string{"1.0.0"}, Base: []string{"keyvalue", "keyvalue.ttl"}, Values: true,
		Slots: []Slot{{Purpose: "storage", Text: "keeps the sessions"}},
		Text:  "sessions of authenticated callers",
	},
}

var (
	valuePatterns  = []string{"keyvalue", "session-manager"}
	streamPatterns = []string{"producer", "consumer", "pubsub"}
)

// interfaces stands in the order of names.
var interfaces = []Interface{
	{"keyvalue", "get, put and delete items, alone and in batches", valuePatterns},
	{"keyvalue.counter", "add to a number exactly once", valuePatterns},
	{"keyvalue.idempotency", "do a write with a token once, however often it is sent", valuePatterns},
	{"keyvalue.large", "read and write values as streams", valuePatterns},
	{"keyvalue.list", "list the ids that have items", valuePatterns},
	{"keyvalue.outbox", "publish messages in the transaction that writes items", valuePatterns},
	{"keyvalue.scan", "read the keys of an id in byte order, and delete runs of them", valuePatterns},
	{"keyvalue.transact", "check and write several items of an id as one", valuePatterns},
	{"keyvalue.ttl", "let items expire", valuePatterns},
	{"keyvalue.version", "write only if the item is absent, present or of a known version", valuePatterns},
	{"keyvalue.watch", "follow changes as they happen", valuePatterns},
	{"stream.atomic", "publish several messages as one", streamPatterns},
	{"stream.consume", "read messages and acknowledge them", streamPatterns},
	{"stream.dedup", "drop a message that was published before", streamPatterns},
	{"stream.delay", "deliver a message not before a time", streamPatterns},
	{"stream.group", "share the messages of a subscription among consumers", streamPatterns},
	{"stream.order", "keep the order of messages with one ordering key", streamPatterns},
	{"stream.publish", "publish messages", streamPatterns},
	{"stream.seek", "read again from a time or position", streamPatterns},
}

var rules = []Rule{
	{ID: "select.durability.default", Need: "durability", Unset: true, Choice: "strong", Reason: "nothing was said, and data that matters must survive a crash"},
	{ID: "select.durability.none", Need: "durability", Value: "none", Choice: "none", Reason: "the data may die with a process"},
	{ID: "select.durability.relaxed", Need: "durability", Value: "relaxed", Choice: "relaxed", Reason: "the last moments before a crash may be lost"},
	{ID: "select.durability.strong", Need: "durability", Value: "strong", Choice: "strong", Reason: "what is acknowledged must be on stable storage"},
	{ID: "select.consistency.messages", Patterns: streamPatterns, Need: "consistency", Unset: true, Choice: "eventual", Reason: "nothing was said, and a message is seen when it arrives"},
	{ID: "select.consistency.default", Patterns: valuePatterns, Need: "consistency", Unset: true, Choice: "strong", Reason: "nothing was said, and a read that misses a write surprises"},
	{ID: "select.consistency.eventual", Need: "consistency", Value: "eventual", Choice: "eventual", Reason: "a read may be stale"},
	{ID: "select.consistency.read_your_writes", Need: "consistency", Value: "read_your_writes", Choice: "read_your_writes", Reason: "a caller sees its own writes"},
	{ID: "select.consistency.strong", Need: "consistency", Value: "strong", Choice: "strong", Reason: "a read sees every write acknowledged before it"},
	{ID: "select.ttl", Need: "ttl", Choice: "keyvalue.ttl", Interface: true, Reason: "a default life needs items that expire"},
	{ID: "select.cache", Patterns: []string{"keyvalue"}, Need: "max_staleness", Choice: "cache", Slot: true, Reason: "reads may be that old, so copies in a faster store can answer them"},
	{ID: "select.ordering.key", Need: "ordering", Value: "key", Choice: "stream.order", Interface: true, Reason: "messages of one key must keep their order"},
	{ID: "select.ordering.topic", Need: "ordering", Value: "topic", Choice: "stream.order", Interface: true, Reason: "messages of a topic must keep their order"},
	{ID: "select.retention", Need: "retention", Choice: "stream.seek", Interface: true, Reason: "messages are kept to be read again"},
}
