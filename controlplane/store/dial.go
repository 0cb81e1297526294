package store

import (
	"crypto/tls"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// DialConfig says where etcd is.
type DialConfig struct {
	// Endpoints are host:port of the members.
	Endpoints []string
	// TLS is for members that ask for it; nil connects in clear.
	TLS *tls.Config
	// Username and Password are for an etcd with authentication.
	Username, Password string
}

// Dial returns a client, which connects when it is first used. The caller closes it.
func Dial(cfg DialConfig) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: cfg.Endpoints,
		TLS:       cfg.TLS,
		Username:  cfg.Username,
		Password:  cfg.Password,
		// A member whose machine is gone is noticed this fast, also by a watch that waits.
		DialTimeout:          2 * time.Second,
		DialKeepAliveTime:    5 * time.Second,
		DialKeepAliveTimeout: 2 * time.Second,
		PermitWithoutStream:  true,
		Logger:               zap.NewNop(), // every error is returned to its caller as well
	})
}
