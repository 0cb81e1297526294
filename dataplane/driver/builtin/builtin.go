// Package builtin lists the drivers that are in the binary.
package builtin

import (
	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/memory"
	"github.com/prism-gateway/prism/dataplane/driver/nats"
	"github.com/prism-gateway/prism/dataplane/driver/postgres"
	"github.com/prism-gateway/prism/dataplane/driver/redis"
	"github.com/prism-gateway/prism/dataplane/driver/s3"
	"github.com/prism-gateway/prism/dataplane/driver/sqlite"
)

// Drivers lists every driver. Adding one is adding it here, and its type to shared/catalog.
func Drivers() []driver.Driver {
	return []driver.Driver{memory.Driver(), nats.Driver(), postgres.Driver(), redis.Driver(), s3.Driver(), sqlite.Driver()}
}
