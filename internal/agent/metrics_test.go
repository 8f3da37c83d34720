// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// The metrics are served to the LAN by TLS, to whom a real API server lets get
// them, and not otherwise.
func TestSecureMetrics(t *testing.T) {
	nstest.Require(t, "ip", "nft")
	cfg := apiServer(t)
	kube := kubernetes.NewForConfigOrDie(cfg)
	mustCreate(t, kube)
	token := func(name string) string {
		t.Helper()
		accounts := kube.CoreV1().ServiceAccounts("default")
		_, err := accounts.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		must(t, err)
		issued, err := accounts.CreateToken(t.Context(), name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
		must(t, err)
		return issued.Status.Token
	}
	prometheus, tenant := token("prometheus"), token("tenant")
	_, err := kube.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "metrics"},
		Rules:      []rbacv1.PolicyRule{{NonResourceURLs: []string{"/metrics"}, Verbs: []string{"get"}}},
	}, metav1.CreateOptions{})
	must(t, err)
	_, err = kube.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "metrics"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "metrics"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "default", Name: "prometheus"}},
	}, metav1.CreateOptions{})
	must(t, err)
	runAgent(t, Config{Node: model.Node{Name: "node-1"}, REST: cfg, Backend: newNftables(t), SecureMetricsAddress: "192.0.2.10:7963"})
	c := &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true},
		Timeout:   10 * time.Second,
	}
	ask := func(token, path string, want int, text string) func() error {
		return func() error {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://192.0.2.10:7963"+path, http.NoBody)
			if err != nil {
				return err
			}
			if token != "" {
				req.Header.Set("Authorization", "Bearer "+token)
			}
			resp, err := c.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != want || !strings.Contains(string(body), text) {
				return fmt.Errorf("%s: %d %.200s (%v), want %d and %q", path, resp.StatusCode, body, err, want, text)
			}
			return nil
		}
	}
	testkit.Eventually(t, 20*time.Second, "refused without a token", ask("", "/metrics", http.StatusUnauthorized, "send the token"))
	for _, path := range []string{"/metrics", "/healthz", "/proxyMode"} {
		must(t, ask("made-up", path, http.StatusUnauthorized, "")())
		must(t, ask(tenant, path, http.StatusForbidden, "may not get /metrics")())
	}
	testkit.Eventually(t, 20*time.Second, "in sync", ask(prometheus, "/metrics", http.StatusOK, "causeway_proxy_in_sync{"))
	testkit.Eventually(t, 20*time.Second, "told", ask(prometheus, "/proxyMode", http.StatusOK, "nftables"))
}
