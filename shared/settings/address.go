package settings

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// CheckEndpoint checks an address to call: host:port, both given.
func CheckEndpoint(address string) error {
	host, port, err := splitAddress(address)
	switch {
	case err != nil:
		return err
	case host == "":
		return fmt.Errorf("address %q: the host is missing", address)
	case port == "0":
		return fmt.Errorf("address %q: the port must be from 1 to 65535", address)
	}
	return nil
}

// CheckLoopback refuses an address that other machines can reach, unless insecure says that it is meant: callers are not
// authenticated.
func CheckLoopback(address string, insecure bool) error {
	host, port, err := splitAddress(address)
	if err != nil || insecure || host == "localhost" {
		return err
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("address %q can be reached from other machines, and callers are not authenticated: "+
		"listen on 127.0.0.1:%s, say by tls which certificates callers show, or set insecure_listen: true where the network keeps strangers out", address, port)
}

func splitAddress(address string) (host, port string, err error) {
	if strings.Contains(address, "://") {
		return "", "", fmt.Errorf("address %q: want host:port, not a URL", address)
	}
	host, port, err = net.SplitHostPort(address)
	if err != nil {
		return "", "", fmt.Errorf("address %q: want host:port, such as 127.0.0.1:9000", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port {
		return "", "", fmt.Errorf("address %q: the port must be from 0 to 65535", address)
	}
	if strings.ContainsAny(host, " \t/@") {
		return "", "", fmt.Errorf("address %q: want host:port, such as 127.0.0.1:9000", address)
	}
	return host, port, nil
}

func joinAddress(host, port string) string { return net.JoinHostPort(host, port) }
